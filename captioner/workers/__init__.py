"""What every worker process is made of, and the chore of delivering webhooks."""
