"""What is printed: progress, colours and tables."""
