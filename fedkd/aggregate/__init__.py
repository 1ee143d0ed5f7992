"""What the server makes of many clients' answers."""
