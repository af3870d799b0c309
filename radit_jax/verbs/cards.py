"""What stands beside exported weights: the recipe (`radit.json`), `prompt.py`, and a model card."""

import importlib.resources
import json
import logging
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import radit_jax
from radit_jax import hosts, runs
from radit_jax.config import TrainGeneratorConfig, TrainRetrieverConfig
from radit_jax.data.examples import RetrievedStore
from radit_jax.data.prompts import Prompt
from radit_jax.errors import UserError
from radit_jax.models.hub import local_directory
from radit_jax.models.sentence_files import RADIT, read_object

log = logging.getLogger("radit_jax")
#: Name and value of each figure of a card.
Figures = Sequence[tuple[str, str]]
NOT_STATED = "not stated"
CARD = "README.md"


def generator_recipe(
  config: TrainGeneratorConfig, prompt: Prompt, retrieved: RetrievedStore, inputs: dict[str, Any], figures: Figures
) -> dict[str, Any]:
  """How a generator was tuned and is to be asked, as JSON values: the `radit.json` of its directory.

  Args:
    config: of the tuning.
    prompt: that it was tuned with.
    retrieved: examples it was tuned on; its k and temperature are those of answering.
    inputs: fingerprints of what was read.
    figures: of the tuning.
  """
  return {
    "kind": "generator",
    "method": config.method,
    "prompt": prompt.recipe(),
    "k": retrieved.manifest["k"],
    "k_train": config.k if config.method == "ralt" else 0,
    "score_temperature": retrieved.manifest["score_temperature"],
    "examples": len(retrieved),
    "base": _base(config.generator, str(inputs["generator"])),
    "inputs": inputs,
    "options": _options(config, inputs),
    "figures": dict(figures),
    "radit_jax": radit_jax.__version__,
  }


def encoder_recipe(
  config: TrainRetrieverConfig, retrieved: RetrievedStore, inputs: dict[str, Any], figures: Figures
) -> dict[str, Any]:
  """How a query encoder was tuned, as JSON values: the ``recipe`` in the `radit.json` of its directory."""
  return {
    "kind": "query encoder",
    "method": config.loss,
    "k": config.k,
    "lm_temperature": config.lm_temperature if config.loss == "lsr" else None,
    "examples": len(retrieved),
    "base": _base(config.encoder, str(inputs["encoder"])),
    "inputs": inputs,
    "options": _options(config, inputs),
    "figures": dict(figures),
    "radit_jax": radit_jax.__version__,
  }


def generator_files(recipe: dict[str, Any], table: str = "", data_licence: str = NOT_STATED) -> dict[str, str]:
  """Texts of the files beside a tuned generator, by name; ``table`` is Markdown."""
  script = importlib.resources.files("radit_jax.data").joinpath("exported_prompt.py").read_text(encoding="utf-8")
  return {
    RADIT: json.dumps(recipe, indent=2, ensure_ascii=False) + "\n",
    "prompt.py": script,
    CARD: generator_card(recipe, table, data_licence),
  }


def generator_card(recipe: dict[str, Any], table: str = "", data_licence: str = NOT_STATED) -> str:
  """The model card of a generator."""
  ralt = recipe["method"] == "ralt"
  how = (
    f"by RALT (RA-DIT, Lin et al. 2023, eq. 3): every question with each of its {recipe['k_train']} best passages "
    "apart, loss on the answer alone"
    if ralt
    else "on questions and answers without passages (plain instruction tuning)"
  )
  use = (
    f"Answers are mixed over {recipe['k']} passages, each in a prompt of its own (eq. 2), with the retriever's scores "
    f"at temperature {recipe['score_temperature']}. `prompt.py` builds those prompts for any engine, and the weights; "
    "it needs Python alone and reads `radit.json`."
  )
  return _card(recipe, "transformers", ["text-generation"], how, use, table, data_licence)


def encoder_card(recipe: dict[str, Any], table: str = "", data_licence: str = NOT_STATED) -> str:
  """The model card of a query encoder."""
  how = {
    "lsr": f"by LSR (RA-DIT, Lin et al. 2023, eqs. 4-5): towards those of its {recipe['k']} best passages under which "
    f"the language model finds the answer likeliest, at τ = {recipe['lm_temperature']}",
    "emdr2": f"by EMDR² (Singh et al. 2021): to make the answer likely under the mixture of its {recipe['k']} best "
    "passages",
    "distill": f"towards a cross-encoder's scores of its {recipe['k']} best passages",
    "contrastive": "to tell the gold passage from all others (contrastive loss)",
  }[recipe["method"]]
  use = (
    "It encodes questions. Passages are encoded by the encoder it was tuned against, whose fingerprint stands in "
    "`radit.json`."
  )
  return _card(recipe, "sentence-transformers", ["sentence-similarity"], how, use, table, data_licence)


def _card(
  recipe: dict[str, Any], library: str, tags: list[str], how: str, use: str, table: str, data_licence: str
) -> str:
  base = recipe["base"]
  head = [f"library_name: {library}", f"tags: [{', '.join(['ra-dit', 'retrieval-augmented-generation', *tags])}]"]
  head += [f"{key}: {json.dumps(value)}" for key, value in base["licence"].items()]  # JSON is YAML, and quotes "no"
  head += [f"base_model: {base['name']}"] * base["on_hub"]
  licence = " ".join(base["licence"].values()) or NOT_STATED
  rows = [f"| {name} | {value} |" for name, value in recipe["figures"].items()]
  options = [f"| {name} | {value} |" for name, value in recipe["options"].items() if value is not None]
  hashes = [f"| {name} | `{value}` |" for name, value in recipe["inputs"].items()]
  return "\n".join(
    [
      "---",
      *head,
      "---",
      "",
      f"# {base['name']}, {recipe['kind']} tuned by RA-DIT",
      "",
      f"Tuned with radit_jax {recipe['radit_jax']} on {recipe['examples']} examples, {how}.",
      "",
      "## Use",
      "",
      use,
      "",
      "## Figures",
      "",
      *([table, ""] if table else []),
      *["| of the tuning | |", "|---|---|", *rows],
      "",
      "## Licences",
      "",
      f"Base model: {licence}. Training data: {data_licence}. The tuned weights are bound by both.",
      "",
      "## How it was made",
      "",
      *["| option | value |", "|---|---|", *options],
      "",
      *["| read | SHA-256 |", "|---|---|", *hashes],
      "",
    ]
  )


def _options(config: Any, inputs: dict[str, Any]) -> dict[str, Any]:
  """All options but paths; a prompt's own template stands in the recipe's prompt."""
  options = runs.flatten(runs.recipe(config, inputs=inputs)["options"])
  if options.get("prompt.style") not in (None, "plain", "chat"):
    options["prompt.style"] = "file"
  return options


def _base(path: str, fingerprint: str) -> dict[str, Any]:
  """The model a tuning started from: its name without directories, licence, and the type of its weights."""
  root = local_directory(path)
  on_hub = not pathlib.Path(path).is_dir()
  return {
    "name": path.partition("@")[0] if on_hub else root.resolve().name,
    "on_hub": on_hub,
    "fingerprint": fingerprint,
    "licence": licence_of(root),
  }


def licence_of(root: pathlib.Path) -> dict[str, str]:
  """What the head of a model card says of the licence: `license`, and name and link of one that has no usual name.

  Example:
    >>> import tempfile
    >>> d = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (d / "README.md").write_text("---\\nlicense: apache-2.0\\n---\\n# A model")
    >>> licence_of(d), licence_of(d.parent)
    ({'license': 'apache-2.0'}, {})
  """
  import yaml

  file = root / CARD
  text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
  head = re.match(r"---\r?\n(.*?)\n---", text, re.DOTALL)
  try:
    said = yaml.safe_load(head[1]) if head else {}
  except yaml.YAMLError:
    said = {}
  said = said if isinstance(said, dict) else {}
  if isinstance(said.get("license"), list):
    said["license"] = ", ".join(map(str, said["license"]))
  return {key: said[key] for key in ("license", "license_name", "license_link") if isinstance(said.get(key), str)}


def warn_of_difference(generator: str, prompt: Prompt, k: int | None) -> None:
  """Says in one line where a tuned generator is asked otherwise than it was tuned. It may be meant.

  Args:
    generator: directory or id; without a recipe, as of a base model, nothing is known of it.
    prompt: that it is asked with.
    k: passages mixed; None where the passages retrieved are not what it is asked with.
  """
  file = local_directory(generator) / RADIT
  recipe = read_object(file) if file.exists() else {}
  tuned = recipe.get("prompt") if recipe.get("kind") == "generator" else None
  if not isinstance(tuned, dict) or not hosts.is_first():
    return
  own = prompt.recipe()
  pairs = {"--prompt.style": (own["style"], tuned.get("style"))}
  for name, limit in own["limits"].items():
    pairs[f"--prompt.{name.replace('_', '-')}"] = limit, tuned.get("limits", {}).get(name)
  differ = {option: pair for option, pair in pairs.items() if pair[0] != pair[1]}
  if not differ and own["hash"] != tuned.get("hash"):  # template or tokenizer
    differ = {"prompt": (own["hash"][:12], str(tuned.get("hash"))[:12])}
  if k is not None and k != recipe.get("k"):
    differ = {"--k": (k, recipe.get("k")), **differ}
  if differ:
    here, before = (" ".join(f"{option} {pair[i]}" for option, pair in differ.items()) for i in (0, 1))
    log.warning("%s: asked with %s, was tuned with %s", generator, here, before)


def read_recipe(directory: pathlib.Path) -> dict[str, Any]:
  """The recipe of a tuned model's directory.

  Raises:
    UserError: a directory without one.
  """
  file = directory / RADIT
  stated = read_object(file) if file.exists() else {}
  recipe = stated if stated.get("kind") == "generator" else stated.get("recipe")
  if not isinstance(recipe, dict) or "base" not in recipe:
    raise UserError(
      f"{file}: holds no recipe of a tuned model; was it made by `radit train-generator` or another verb?"
    )
  return recipe
