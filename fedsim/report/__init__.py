"""What a person sees: live progress, tables."""
