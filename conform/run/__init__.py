"""Plans trials, runs them in workers, writes the run file."""
