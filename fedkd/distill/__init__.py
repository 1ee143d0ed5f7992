"""Losses, students, teacher, public features and the trainer."""
