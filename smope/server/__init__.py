"""`smope serve`: a trained model as a web page and a JSON endpoint."""
