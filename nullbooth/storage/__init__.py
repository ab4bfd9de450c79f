"""Files and folders that are whole or absent, and carry the identity of what they were made from."""
