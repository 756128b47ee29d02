"""One module for each way providers answer."""
