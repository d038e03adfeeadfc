"""Instruction sets: tables, prompts, tokens and how generated answers are scored."""
