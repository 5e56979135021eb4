"""Reports, each a function of a run's lines (docs/run-format.md): terminal, JUnit, HTML, GitHub Actions."""
