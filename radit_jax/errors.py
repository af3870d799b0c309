"""How a call can end otherwise than with its result: a wrong call, a run that cannot go on, a signal to stop."""


class UserError(ValueError):
  """A wrong call or wrong input, told in one line.

  The message names the file, line, option or both numbers, and says what to do next. The command line prints it
  without a traceback and exits with status 2; every other exception is a fault and exits with status 1.
  """


class TrainingError(RuntimeError):
  """A run that cannot go on, e.g. after repeated non-finite steps; names the examples of the batch. Exit status 1."""


class Preempted(BaseException):
  """A signal asked to stop; what can be saved is saved, and the same command continues it. Exit status 75.

  It may come up anywhere, like KeyboardInterrupt, and must not be taken for an error by what handles errors.

  Attributes:
    agreed: all processes of the run raise it at this point.
  """

  def __init__(self, message: str, *, agreed: bool = False):
    super().__init__(message)
    self.agreed = agreed
