"""Pictures drawn, measured and shown."""
