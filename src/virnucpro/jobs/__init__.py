"""Complete jobs: files to a plan, and a plan to a report."""
