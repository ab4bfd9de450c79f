"""What the user gives: settings, prompts, edits, photographs. Imports no torch."""
