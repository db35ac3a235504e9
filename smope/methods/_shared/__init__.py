"""What several methods are made of; a file here is no method by itself."""
