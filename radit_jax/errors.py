"""The one exception that means "the caller can fix this"."""


class UserError(ValueError):
  """A wrong call or wrong input, told in one line.

  The message names the file, line, option or both numbers, and says what to do next. The command line prints it
  without a traceback and exits with status 2; every other exception is a fault and exits with status 1.
  """


class TrainingError(RuntimeError):
  """A run that cannot go on, e.g. after repeated non-finite steps; names the examples of the batch. Exit status 1."""


class Preempted(RuntimeError):
  """SIGTERM arrived, the state was saved, and the same command continues it. Exit status 75."""
