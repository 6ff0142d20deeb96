"""From a question to a grounded prompt, and from an answer to its citations."""
