"""Interprets one trial: steps in, actions out, a transcript and a verdict. No I/O and no clock."""
