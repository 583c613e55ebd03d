"""A whole evaluation from files to a report: configuration, runner, results."""
