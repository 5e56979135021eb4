"""From a YAML file to a checked :class:`~conform.case.model.Case`. A case is data and can run nothing."""
