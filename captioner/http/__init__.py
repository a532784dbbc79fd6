"""What the API, the pages and the admin have in common: who asks, how often, and how a picture is answered."""
