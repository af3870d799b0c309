"""Every format of questions by its name: a table of readers, each mostly a mapping."""

from radit_jax.data.readers.choices import CHOICES
from radit_jax.data.readers.dialogue import DIALOGUE
from radit_jax.data.readers.layer import Reader
from radit_jax.data.readers.open_domain import OPEN_DOMAIN
from radit_jax.data.readers.reading import READING
from radit_jax.data.readers.reasoning import REASONING

#: Name as in :data:`radit_jax.config.QuestionFormat` -> how it is read.
READERS: dict[str, Reader] = {**OPEN_DOMAIN, **READING, **CHOICES, **REASONING, **DIALOGUE}
