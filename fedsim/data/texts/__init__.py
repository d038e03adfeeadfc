"""Text classification: texts read and made tokens."""
