"""What a model's own files said that its numbers do not, kept so that an export says it again."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class SourceFiles:
  """Texts of the directory a model was loaded from.

  Attributes:
    config: `config.json`, as it was.
    generation_config: `generation_config.json`, as it was; empty if there was none.
    prefix: what the names of the tensors begin with, such as "model." or "bert.".
    tied_head: the files hold the output head although it is the embedding.
  """

  config: str
  generation_config: str = ""
  prefix: str = ""
  tied_head: bool = False
