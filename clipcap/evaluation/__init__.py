"""How good captions are: scores, verdicts and confidence."""
