"""Every process that searches follows the promoted index versions, and flips with the others."""
