"""What the answers of a study say: statistics of each question, and the page that shows them."""
