"""One table of data sets: where their files come from, what must be in them, and what their licences allow.

Nothing here opens a connection. Addresses, sizes and digests come from the sets' own repositories and from the lists
that TFDS 4.9.10 and `datasets` 2.0.0 ship for the addresses they load from; a `None` is one that no such list states.
Licences are what distributors say of their data; nobody here is a lawyer.
"""

import dataclasses
import difflib
import pathlib
import typing
from collections.abc import Iterable, Mapping
from typing import Literal

from radit_jax.config import CorpusFormat, QuestionFormat
from radit_jax.data.readers import READERS
from radit_jax.errors import UserError

#: What the paper does with a set: fine-tuning of the generator, of the retriever, evaluation, the corpus.
Use = Literal["generator", "retriever", "evaluation", "corpus"]
Licence = Literal["any", "commercial"]


@dataclasses.dataclass(frozen=True)
class Source:
  """One file of a set.

  Attributes:
    url: where it is; where a person must fetch it, the page that leads there.
    save_as: its path below the folder of the set.
    size: bytes; None where nobody states it.
    sha256: hex digest; None where nobody states it: then the first download writes it down, and later ones must agree.
    blob: id that git gives the file's content, where the address is a commit's and no SHA-256 is known.
    members: of an archive, patterns of what is unpacked below the folder of the set; the archive is deleted then.
    by_hand: why it is not fetched, and what to do; "" where it is.
  """

  url: str
  save_as: str
  size: int | None = None
  sha256: str | None = None
  blob: str | None = None
  members: tuple[str, ...] = ()
  by_hand: str = ""


@dataclasses.dataclass(frozen=True)
class CatalogueEntry:
  """A data set.

  Attributes:
    name: its name here, and the name of its folder.
    format: of its files, as `--questions-format` or `--corpus-format` takes it.
    files: what is fetched.
    splits: split -> path below the folder of the set that the reader of ``format`` is given.
    licence: SPDX identifier, or what is known in words.
    commercial: whether a licence is stated that allows commercial use. What is not known counts as no.
    uses: what the paper does with it.
  """

  name: str
  format: QuestionFormat | CorpusFormat
  files: tuple[Source, ...]
  splits: Mapping[str, str]
  licence: str
  commercial: bool
  uses: tuple[Use, ...] = ()

  @property
  def by_hand(self) -> str:
    """Why a person must fetch some of it, and what to do; "" where nobody must."""
    return " ".join(dict.fromkeys(source.by_hand for source in self.files if source.by_hand))

  @property
  def size(self) -> int | None:
    """Bytes to fetch; None where they are not known of every file."""
    sizes = [source.size for source in self.files]
    return None if None in sizes else sum(typing.cast(list[int], sizes))


def usable(names: Iterable[str], licence: Licence = "commercial") -> tuple[list[str], dict[str, str]]:
  """Those sets of a mix that a licence allows, and why the others are lost.

  Args:
    names: names of the catalogue.
    licence: "commercial" keeps what is stated to allow commercial use, "any" everything.

  Returns:
    The names kept, in their order, and name -> reason of the others.

  Raises:
    UserError: a name that the catalogue does not have.

  Example:
    >>> usable(["gsm8k", "ms_marco"])
    (['gsm8k'], {'ms_marco': 'non-commercial research only (terms of MS MARCO)'})
  """
  kept, lost = [], {}
  for name in names:
    entry = entry_named(name)
    if licence == "any" or entry.commercial:
      kept.append(name)
    else:
      lost[name] = entry.licence
  return kept, lost


def entry_named(name: str) -> CatalogueEntry:
  """An entry by its name.

  Raises:
    UserError: there is none; the nearest is named.
  """
  if name not in CATALOGUE:
    near = max(CATALOGUE, key=lambda known: difflib.SequenceMatcher(None, name, known).ratio())
    raise UserError(f"no set {name!r}; the nearest is {near!r} (radit download --list shows all)")
  return CATALOGUE[name]


def located(data: pathlib.Path, name: str, split: str) -> tuple[pathlib.Path, str | None]:
  """What :func:`radit_jax.data.read_examples` is given for a split of a downloaded set: the path, and a split or None.

  Raises:
    UserError: no such set, or no such split of it.

  Example:
    >>> located(pathlib.Path("data"), "gsm8k", "train"), located(pathlib.Path("data"), "narrativeqa", "train")
    ((PosixPath('data/gsm8k/train.jsonl'), None), (PosixPath('data/narrativeqa'), 'train'))
  """
  entry = entry_named(name)
  if split not in entry.splits:
    raise UserError(f"{name} has no split {split!r}; it has {', '.join(map(repr, entry.splits))}")
  reader = READERS.get(entry.format)
  return data / name / entry.splits[split], split if reader is not None and reader.splits else None


# The table.

_NO_DRIVE = "Google Drive asks for a confirmation first: open {}, and save the file as {}."
_KILT = "http://dl.fbaipublicfiles.com/KILT"
_GITHUB = "https://raw.githubusercontent.com"
_AI2 = "https://s3-us-west-2.amazonaws.com/ai2-website/data"
_MOSAIC = "https://storage.googleapis.com/ai2-mosaic/public"
_SQUAD = "https://rajpurkar.github.io/SQuAD-explorer/dataset"
_BOTH: tuple[Use, ...] = ("generator", "retriever")


def _at(folder: str, name: str, size: int | None = None, sha256: str | None = None, **more: typing.Any) -> Source:
  """A file under the name that it has at its address."""
  return Source(f"{folder}/{name}", more.pop("save_as", name), size, sha256, **more)


def _drive(key: str, name: str, size: int, sha256: str, **more: typing.Any) -> Source:
  url = f"https://drive.google.com/uc?export=download&id={key}"
  return Source(url, name, size, sha256, by_hand=_NO_DRIVE.format(url, name), **more)


def _kilt(
  name: str, stem: str, kind: QuestionFormat, licence: str, commercial: bool, *files: tuple[int, str]
) -> CatalogueEntry:
  """Train and dev of a KILT task."""
  return CatalogueEntry(
    name,
    kind,
    tuple(_at(_KILT, f"{stem}-{s}-kilt.jsonl", *f) for s, f in zip(("train", "dev"), files, strict=True)),
    {split: f"{stem}-{split}-kilt.jsonl" for split in ("train", "dev")},
    licence,
    commercial,
    ("evaluation",),
  )


_CSQA = "https://s3.amazonaws.com/commensenseqa"
_CSQA_TRAIN = _at(
  _CSQA, "train_rand_split.jsonl", 3785890, "58ffa3c8472410e24b8c43f423d89c8a003d8284698a6ed7874355dedd09a2fb"
)
_CSQA_DEV = _at(
  _CSQA, "dev_rand_split.jsonl", 471653, "3210497fdaae614ac085d9eb873dd7f4d49b6f965a93adadc803e1229fd8a02a"
)
_ECQA = f"{_GITHUB}/dair-iitd/ECQA-Dataset/2ba8f0d3cf64ba5beb4605808ee1285c895af50d"
_NARRATIVE = f"{_GITHUB}/google-deepmind/narrativeqa/904246f6d1fe99a99a08a03501fe3e619af2cee5"
_QUAIL = f"{_GITHUB}/text-machine-lab/quail/e2b0705a2099f44b60fad0bad5a947913b181bbd/quail_v1.3/json"
_FREEBASE = f"{_GITHUB}/kelvin-jiang/FreebaseQA/master"
_GSM = f"{_GITHUB}/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data"
_STRATEGY = f"{_GITHUB}/eladsegal/strategyqa/1ba1e97452e189569357876f2854b01357ffbe37/data/strategyqa"
_NQ_OPEN = f"{_GITHUB}/google-research-datasets/natural-questions/a7a113c9fdc2d9986d624bd43b8a18d6d5779eaa/nq_open"
_OASST = "https://huggingface.co/datasets/OpenAssistant/oasst1/resolve/fdf72ae0827c1cda404aff25b6603abec9e3399b"
_CODALAB = "https://worksheets.codalab.org/rest/bundles"
_MARCO = "https://msmarco.blob.core.windows.net/msmarco"

_ENTRIES = [
  # Fine-tuning of the generator, and the first six of the retriever too.
  CatalogueEntry(
    "oasst1",
    "oasst1",
    (
      _at(
        _OASST,
        "2023-04-12_oasst_ready.trees.jsonl.gz",
        34145252,
        "2a9a8fd343e9b28e04a895a669d3253f82d93e9c174d440199ae19d5fafbdff7",
      ),
    ),
    {"train": "2023-04-12_oasst_ready.trees.jsonl.gz"},
    "Apache-2.0",
    True,
    _BOTH,
  ),
  CatalogueEntry(
    "commonsense_qa",
    "commonsense_qa",
    (_CSQA_TRAIN, _CSQA_DEV),
    {"train": "train_rand_split.jsonl", "dev": "dev_rand_split.jsonl"},
    "MIT",
    True,
    _BOTH,
  ),
  CatalogueEntry(
    "math_qa",
    "math_qa",
    (
      _at(
        "https://math-qa.github.io/math-QA/data",
        "MathQA.zip",
        7302821,
        "7344f30456a7aef3176d4866cc953b35b41bec44eda6b00cdbcfde2876b2f07a",
        members=("train.json", "dev.json", "test.json"),
      ),
    ),
    {"train": "train.json", "dev": "dev.json", "test": "test.json"},
    "Apache-2.0",
    True,
    _BOTH,
  ),
  CatalogueEntry(
    "web_questions",
    "web_questions",
    (
      Source(
        f"{_CODALAB}/0x4a763f8cde224c2da592b75f29e2f5c2/contents/blob/",
        "webquestions.train.json",
        825320,
        "fb1797e4554a1b1be642388367de1379f8c0d5afc609ac171492c67f7b70cb1e",
      ),
      Source(
        f"{_CODALAB}/0xe7bac352fce7448c9ef238fb0a297ec2/contents/blob/",
        "webquestions.test.json",
        447645,
        "e3d4550e90660aaabe18458ba34b59f2624857273f375af7353273ce8b84ce6e",
      ),
    ),
    {"train": "webquestions.train.json", "test": "webquestions.test.json"},
    "CC-BY-4.0",
    True,
    _BOTH,
  ),
  CatalogueEntry(
    "wiki_qa",
    "wiki_qa",
    (
      _at(
        "https://download.microsoft.com/download/E/5/f/E5FCFCEE-7005-4814-853D-DAA7C66507E0",
        "WikiQACorpus.zip",
        7094233,
        "467c13f9e104552c0a9c16f41836ca8d89f9c0cc4b6e4355e104d5c3109ffa45",
        members=("WikiQACorpus/WikiQA-*.tsv",),
      ),
    ),
    {split: f"WikiQACorpus/WikiQA-{split}.tsv" for split in ("train", "dev", "test")},
    "research and technology development only (Microsoft Research Data License Agreement)",
    False,
    _BOTH,
  ),
  CatalogueEntry(
    "yahoo_answers_qa",
    "yahoo_answers_qa",
    (
      _at(
        "https://ciir.cs.umass.edu/downloads/nfL6",
        "nfL6.json.gz",
        49411220,
        "527ff8a1d898dfbb500e373f102a0e8f2d206dcb2c75c187d59902c3688b4ff3",
      ),
    ),
    {"train": "nfL6.json.gz"},
    "no licence stated; drawn from Yahoo's Webscope L6, which is for non-commercial research",
    False,
    _BOTH,
  ),
  CatalogueEntry(
    "freebase_qa",
    "freebase_qa",
    (
      _at(
        _FREEBASE, "FreebaseQA-train.json", 23888089, "b9769a0040032e39a62bd4b0b99d7dfa1a3fe29c2108dbf6245f62874d0d4753"
      ),
      _at(
        _FREEBASE, "FreebaseQA-dev.json", 4656349, "ec08abf2b0d89eca6eac02f6f5ae72f46211c256aadb51760e252eafce14e961"
      ),
      _at(
        _FREEBASE, "FreebaseQA-eval.json", 4660561, "14d29d8180d2eaa44eda444debba08f292f42337e098e5b717455e462d278451"
      ),
    ),
    {"train": "FreebaseQA-train.json", "dev": "FreebaseQA-dev.json", "test": "FreebaseQA-eval.json"},
    "CC-BY-4.0",
    True,
    ("retriever",),
  ),
  CatalogueEntry(
    "ms_marco",
    "ms_marco",
    (
      _at(
        _MARCO,
        "train_v2.1.json.gz",
        1112116929,
        "e91745411ca81e441a3bb75deb71ce000dc2fc31334085b7d499982f14218fe2",
      ),
      _at(_MARCO, "dev_v2.1.json.gz", 138303699, "5b3c9c20d1808ee199a930941b0d96f79e397e9234f77a1496890b138df7cb3c"),
    ),
    {"train": "train_v2.1.json.gz", "dev": "dev_v2.1.json.gz"},
    "non-commercial research only (terms of MS MARCO)",
    False,
    ("retriever",),
  ),
  CatalogueEntry(
    "coqa",
    "coqa",
    (
      _at(
        "https://nlp.stanford.edu/data/coqa",
        "coqa-train-v1.0.json",
        49001836,
        "b0fdb2bc1bd38dd3ca2ce5fa2ac3e02c6288ac914f241ac409a655ffb6619fa6",
      ),
      _at(
        "https://nlp.stanford.edu/data/coqa",
        "coqa-dev-v1.0.json",
        9090845,
        "dfa367a9733ce53222918d0231d9b3bedc2b8ee831a2845f62dfc70701f2540a",
      ),
    ),
    {"train": "coqa-train-v1.0.json", "dev": "coqa-dev-v1.0.json"},
    "five licences by domain: CC-BY-SA-4.0, MSR-LA, that of RACE (non-commercial), Apache-2.0",
    False,
    ("generator",),
  ),
  CatalogueEntry(
    "drop",
    "drop",
    (
      _at(
        "https://s3-us-west-2.amazonaws.com/allennlp/datasets/drop",
        "drop_dataset.zip",
        8308692,
        "39d2278a29fd729de301b111a45f434c24834f40df8f4ff116d864589e3249d6",
        members=("drop_dataset/drop_dataset_*.json",),
      ),
    ),
    {split: f"drop_dataset/drop_dataset_{split}.json" for split in ("train", "dev")},
    "CC-BY-SA-4.0",
    True,
    ("generator",),
  ),
  CatalogueEntry(
    "narrativeqa",
    "narrativeqa",
    (
      _at(_NARRATIVE, "qaps.csv", blob="599c8ef69e8dbb4614a390e8006f11bf08fb6427"),
      _at(_NARRATIVE, "third_party/wikipedia/summaries.csv", blob="596380d940d87f6501fcd303e50fe9078b6c5fc8"),
    ),
    {"train": ".", "valid": ".", "test": "."},
    "Apache-2.0; summaries from Wikipedia, CC-BY-SA-3.0",
    True,
    ("generator",),
  ),
  CatalogueEntry(
    "newsqa",
    "newsqa",
    (
      Source(
        "https://github.com/Maluuba/newsqa",
        "combined-newsqa-data-v1.json",
        by_hand=(
          "Its authors may not pass CNN's articles on: follow https://github.com/Maluuba/newsqa (questions from "
          "Microsoft after a click on its terms, stories from CNN's part of DMQA, joined by their script), and save "
          "what it makes as combined-newsqa-data-v1.json."
        ),
      ),
    ),
    dict.fromkeys(("train", "dev", "test"), "combined-newsqa-data-v1.json"),
    "terms of Microsoft and of CNN, whose articles these are",
    False,
    ("generator",),
  ),
  CatalogueEntry(
    "pubmed_qa",
    "pubmed_qa",
    (
      _at(
        f"{_GITHUB}/pubmedqa/pubmedqa/master/data",
        "ori_pqal.json",
        2584787,
        "8b3276be8942ebbd77f3ddcda12c1749bf0e490045a736fd8438ee40cf37a41d",
      ),
      _drive(
        "15v1x6aQDlZymaHGP7cZJZZYFfeJt2NdS",
        "ori_pqaa.json",
        533377829,
        "d4a2234356e5a68321de65303d45f2d2b15dfbe22ba73d71d6d933d5f92570f9",
      ),
    ),
    {"train": "ori_pqaa.json", "test": "ori_pqal.json"},
    "MIT",
    True,
    _BOTH,
  ),
  CatalogueEntry(
    "quac",
    "quac",
    (
      _at(
        "https://s3.amazonaws.com/my89public/quac",
        "train_v0.2.json",
        68114819,
        "ff5cca5a2e4b4d1cb5b5ced68b9fce88394ef6d93117426d6d4baafbcc05c56a",
      ),
      _at(
        "https://s3.amazonaws.com/my89public/quac",
        "val_v0.2.json",
        8929167,
        "09e622916280ba04c9352acb1bc5bbe80f11a2598f6f34e934c51d9e6570f378",
      ),
    ),
    {"train": "train_v0.2.json", "dev": "val_v0.2.json"},
    "CC-BY-SA-4.0",
    True,
  ),
  CatalogueEntry(
    "quail",
    "quail",
    (
      _at(_QUAIL, "train.jsonl", blob="85cd4afc3b5f44f9e49394fbfd84570606bf9cf8"),
      _at(_QUAIL, "dev.jsonl", blob="1fb814ec3d307210398e12f769712986e5850e1e"),
      _at(_QUAIL, "challenge.jsonl", 1282446, "c512309d2fbf2ddcb0fe1782598eda876515008608a88f8012b2f370de495914"),
    ),
    {"train": "train.jsonl", "dev": "dev.jsonl", "test": "challenge.jsonl"},
    "CC-BY-NC-SA-4.0",
    False,
    ("generator",),
  ),
  CatalogueEntry(
    "quarel",
    "quarel",
    (
      _at(
        _AI2,
        "quarel-dataset-v1-nov2018.zip",
        631370,
        "95437eb445467676a9b2fbda4b2021b88d788ff483ed31e63988c67ac4c6a27c",
        members=("quarel-dataset-v1/quarel-v1-*.jsonl",),
      ),
    ),
    {split: f"quarel-dataset-v1/quarel-v1-{split}.jsonl" for split in ("train", "dev", "test")},
    "CC-BY-4.0",
    True,
    _BOTH,
  ),
  CatalogueEntry(
    "squad_v2",
    "squad_v2",
    (
      _at(_SQUAD, "train-v2.0.json", 42123633, "68dcfbb971bd3e96d5b46c7177b16c1a4e7d4bdef19fb204502738552dede002"),
      _at(_SQUAD, "dev-v2.0.json", 4370528, "80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8"),
    ),
    {"train": "train-v2.0.json", "dev": "dev-v2.0.json"},
    "CC-BY-SA-4.0",
    True,
    ("generator",),
  ),
  CatalogueEntry(
    "cnn_dailymail",
    "cnn_dailymail",
    (
      _drive(
        "0BwmD_VLjROrfTHk4NFg2SndKcjQ",
        "cnn_stories.tgz",
        158577824,
        "e8fbc0027e54e0a916abd9c969eb35f708ed1467d7ef4e3b17a56739d65cb200",
        members=("cnn/stories/*.story",),
      ),
      _drive(
        "0BwmD_VLjROrfM1BxdkxVaTY2bWs",
        "dailymail_stories.tgz",
        375893739,
        "ad69010002210b7c406718248ee66e65868b9f6820f163aa966369878d14147e",
        members=("dailymail/stories/*.story",),
      ),
    ),
    {"train": "."},
    "Apache-2.0 is stated for the set; the articles are those of CNN and the Daily Mail",
    False,
    ("generator",),
  ),
  CatalogueEntry(
    "aqua_rat",
    "aqua_rat",
    (
      _at(
        f"{_GITHUB}/deepmind/AQuA/master",
        "train.json",
        47570935,
        "35b70c7cb1660c34d302bb932dfd3656ce3d05e8c982c797767fec31d7d1e0ba",
      ),
      _at(
        f"{_GITHUB}/deepmind/AQuA/master",
        "dev.json",
        132008,
        "4a52301d8a49ae0b286f8e697f9c5da1b109b247b825b47b4c6de34312dceec5",
      ),
      _at(
        f"{_GITHUB}/deepmind/AQuA/master",
        "test.json",
        130192,
        "de41581881ef95c5588c44ddc701c77fd480839241dd422a0d181262af24520c",
      ),
    ),
    {split: f"{split}.json" for split in ("train", "dev", "test")},
    "Apache-2.0",
    True,
    ("generator",),
  ),
  CatalogueEntry(
    "ecqa",
    "ecqa",
    (
      _at(_ECQA, "ecqa.jsonl", blob="512d121fd9105b0dd7c07d160f275da60d38405c"),
      _at(
        _ECQA,
        "author_split/train_ids.txt",
        250934,
        "ee610debd88af00ff4447de42f9457cf8470b0bc586a4f4a8ab7dd025d1225a2",
      ),
      _at(_ECQA, "author_split/val_ids.txt", 35990, "5d8c8b798839227e06455d951e9597701c46da2e3906cd4f4b885d8fb9d5f847"),
      _at(
        _ECQA, "author_split/test_ids.txt", 72452, "5b5f2d96c3a7f2e3e9c0745c10fc737d9655d1d3efc9fde31ba4970dc0261d75"
      ),
      # The questions themselves: ECQA has their ids and the reasoning.
      dataclasses.replace(_CSQA_TRAIN, save_as="cqa/train_rand_split.jsonl"),
      dataclasses.replace(_CSQA_DEV, save_as="cqa/dev_rand_split.jsonl"),
    ),
    {"train": ".", "val": ".", "test": "."},
    "CDLA-Sharing-1.0; questions of CommonsenseQA, MIT",
    True,
    ("generator",),
  ),
  CatalogueEntry(
    "gsm8k",
    "gsm8k",
    (
      _at(_GSM, "train.jsonl", 4166206, "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465"),
      _at(_GSM, "test.jsonl", 749738, "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"),
    ),
    {"train": "train.jsonl", "test": "test.jsonl"},
    "MIT",
    True,
    ("generator",),
  ),
  CatalogueEntry(
    "competition_math",
    "competition_math",
    (
      Source(
        "https://github.com/hendrycks/math",
        "MATH.tar",
        20327424,
        "01256fd7cd5430596fdf07e6e6a5827111b5235b7ffed679c662a12f898932da",
        members=("MATH/train/*.json", "MATH/test/*.json"),
        by_hand=(
          "It was taken down in January 2025, after a notice of the Art of Problem Solving, whose problems these are; "
          "who has MATH.tar of before may put it here."
        ),
      ),
    ),
    {"train": "MATH/train", "test": "MATH/test"},
    "MIT is stated by its authors; the Art of Problem Solving claims the problems",
    False,
    ("generator",),
  ),
  CatalogueEntry(
    "strategyqa",
    "strategyqa",
    (
      _at(_STRATEGY, "train.json", 3857762, "0f72560b8a6fad3db847d2f1a7524fb087297843bb45a8d3245ffd68cbe0de12"),
      _at(_STRATEGY, "dev.json", 424195, "0d94842ffb022db8fd5ecd2168b785d5cf67f6faf64f665476bad544a3eb9dde"),
    ),
    {"train": "train.json", "dev": "dev.json"},
    "MIT",
    True,
    ("generator",),
  ),
  # Evaluation.
  CatalogueEntry(
    "mmlu",
    "mmlu",
    (
      _at(
        "https://people.eecs.berkeley.edu/~hendrycks",
        "data.tar",
        166339072,
        "78a804365a59028188fb19bd1adcadc5e0c260b220a9d8b2e33a5ea7d5fbe3b4",
        members=("data/dev/*.csv", "data/val/*.csv", "data/test/*.csv"),
      ),
    ),
    {"dev": "data/dev", "val": "data/val", "test": "data/test"},
    "MIT",
    True,
    ("evaluation",),
  ),
  CatalogueEntry(
    "nq_open",
    "nq_open",
    (
      _at(_NQ_OPEN, "NQ-open.train.jsonl", 8522298, "0c93aaf13b12f855628489665e4ef85ffb8573ad444646f11f4fabdc57a0aabf"),
      _at(_NQ_OPEN, "NQ-open.dev.jsonl", 391316, "f15567f38099f3615f5b8a685c0aef449c11ad90d3da3735e8d1b98115b40616"),
    ),
    {"train": "NQ-open.train.jsonl", "dev": "NQ-open.dev.jsonl"},
    "CC-BY-SA-3.0",
    True,
    ("evaluation",),
  ),
  CatalogueEntry(
    "trivia_qa",
    "trivia_qa",
    (
      _at(
        "http://nlp.cs.washington.edu/triviaqa/data",
        "triviaqa-unfiltered.tar.gz",
        632549060,
        "7f0c94207fd0a1eb7bba3d52cdfe0735c98de850b9e5aa4e75f2776ef9a531d0",
        members=("triviaqa-unfiltered/unfiltered-web-train.json", "triviaqa-unfiltered/unfiltered-web-dev.json"),
      ),
    ),
    {split: f"triviaqa-unfiltered/unfiltered-web-{split}.json" for split in ("train", "dev")},
    "none for the questions, which the University of Washington does not own",
    False,
    ("evaluation",),
  ),
  _kilt(
    "kilt_hotpotqa",
    "hotpotqa",
    "kilt",
    "CC-BY-SA-4.0",
    True,
    (52767068, "7ba73ede642336703d1235c63ecb4c20ae90c7eb19d36302bffa7eb1ec7f9153"),
    (3971321, "7f2efbc22c462eb5710e5ecd99447702e7f48203eecd4489bf32a332389d70b6"),
  ),
  _kilt(
    "kilt_eli5",
    "eli5",
    "kilt_eli5",
    "unclear: posts on Reddit by way of Pushshift",
    False,
    (548249898, "66f19183bda5f5185fe98a5fe84925f6802d9b53a5bb12728ded760fd80ef0a0"),
    (14149811, "10387a08e3277d3e5722305cef8e739279c83de0218e7b3db76b301949822303"),
  ),
  _kilt(
    "kilt_fever",
    "fever",
    "kilt_fever",
    "CC-BY-SA-3.0",
    True,
    (38941824, "a42b948957680b3d316bbc9c24f3e499f0e93a3b0a8b94ca9d972d5da5758c6a"),
    (6174139, "0132fb971e4206c8bd9da3916f0f46a30ee6610394aee1738ce6cf6644592739"),
  ),
  _kilt(
    "kilt_aida",
    "aidayago2",
    "kilt_aida",
    "not stated by KILT; news of Reuters (CoNLL 2003)",
    False,
    (70139831, "398231ec4ee9fd5616456d049875e51b1e0709f00ac2d74398dd4480ae5647b2"),
    (21061554, "3f5e23e1af46c8671c9870e13ced13fd517029da4963ad9ff4b834c4b42deb52"),
  ),
  _kilt(
    "kilt_zsre",
    "structured_zeroshot",
    "kilt_zsre",
    "not stated by KILT",
    False,
    (71444475, "f666359fa2b23e75d700bd1f25efd12d3bf981b1be70d8ad2d268d67e9bb3a5d"),
    (2266707, "dd120ba5b62c6499f4e79bf5bf5a908eb96b583ba9bf8c76a4535ac21c5dac8d"),
  ),
  _kilt(
    "kilt_trex",
    "trex",
    "kilt_trex",
    "not stated by KILT",
    False,
    (1752330104, "724a8a0fd1f99fe9b15cf6309d7ce63dcb7cd31f33aea717ff26e6d6b6fbdd97"),
    (3803558, "7ee1a2cd351d928d01ede1763ae8d6ae442a00b07deef80e347852f20a029e5f"),
  ),
  _kilt(
    "kilt_wow",
    "wow",
    "kilt_wow",
    "not stated by KILT",
    False,
    (48937036, "d90e9191d52670e38c340c4aa208e326bbf10f1e85ef6af9b3d3bcb98d3d30fb"),
    (2418285, "bbf98ea3841f3454e189e69829d6c03149c2e7482b3feda0ea73acf547654c7b"),
  ),
  CatalogueEntry(
    "boolq",
    "boolq",
    (
      _at(
        "https://storage.googleapis.com/boolq",
        "train.jsonl",
        6525813,
        "cc7a79d44479867e8323a7b0c5c1d82edf516ca34912201f9384c3a3d098d8db",
      ),
      _at(
        "https://storage.googleapis.com/boolq",
        "dev.jsonl",
        2238726,
        "ebc29ea3808c5c611672384b3de56e83349fe38fc1fe876fd29b674d81d0a80a",
      ),
    ),
    {"train": "train.jsonl", "dev": "dev.jsonl"},
    "CC-BY-SA-3.0",
    True,
    ("evaluation",),
  ),
  CatalogueEntry(
    "piqa",
    "piqa",
    (
      _at(
        f"{_MOSAIC}/physicaliqa",
        "physicaliqa-train-dev.zip",
        1824009,
        "54d32a04f59a7e354396f321723c8d7ec35cc6b08506563d8d1ffcc15ce98ddd",
        members=("physicaliqa-train-dev/*.jsonl", "physicaliqa-train-dev/*.lst"),
      ),
    ),
    {split: f"physicaliqa-train-dev/{split}.jsonl" for split in ("train", "dev")},
    "not stated",
    False,
    ("evaluation",),
  ),
  CatalogueEntry(
    "siqa",
    "siqa",
    (
      _at(
        f"{_MOSAIC}/socialiqa",
        "socialiqa-train-dev.zip",
        2198056,
        "ee073914a0fc33265cfbcfc50ec20df9b2e07809c3f420f599138d1f394ef5c3",
        members=("socialiqa-train-dev/*.jsonl", "socialiqa-train-dev/*.lst"),
      ),
    ),
    {split: f"socialiqa-train-dev/{split}.jsonl" for split in ("train", "dev")},
    "not stated",
    False,
    ("evaluation",),
  ),
  CatalogueEntry(
    "hellaswag",
    "hellaswag",
    tuple(
      _at(f"{_GITHUB}/rowanz/hellaswag/master/data", f"hellaswag_{split}.jsonl", size, sha256)
      for split, size, sha256 in (
        ("train", 47496131, "dae5e69249868cb9fe4e23ff925c60b66169564cfb7072d793cd7356a2b69f8d"),
        ("val", 12246618, "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588"),
      )
    ),
    {"train": "hellaswag_train.jsonl", "val": "hellaswag_val.jsonl"},
    "MIT",
    True,
    ("evaluation",),
  ),
  CatalogueEntry(
    "winogrande",
    "winogrande",
    (
      _at(
        f"{_MOSAIC}/winogrande",
        "winogrande_1.1.zip",
        3395492,
        "3619ab104d8be2977b25c90ff420cb42d491707dcc75362a1e5d22bc082b7318",
        members=("winogrande_1.1/*.jsonl",),
      ),
    ),
    {"train": "winogrande_1.1/train_xl.jsonl", "dev": "winogrande_1.1/dev.jsonl"},
    "not stated",
    False,
    ("evaluation",),
  ),
  CatalogueEntry(
    "arc",
    "arc",
    (
      _at(
        _AI2,
        "ARC-V1-Feb2018.zip",
        680841265,
        "6d2d5ab50b2ceec6ba5f79c921be77cf2de712ea25a2b3f4fff3acc101cecfa0",
        members=("ARC-V1-Feb2018-2/ARC-*/ARC-*.jsonl",),
      ),
    ),
    {
      f"{split}{suffix}": f"ARC-V1-Feb2018-2/{name}/{name}-{split.title()}.jsonl"
      for name, suffix in (("ARC-Challenge", ""), ("ARC-Easy", "_easy"))
      for split in ("train", "dev", "test")
    },
    "CC-BY-SA-4.0",
    True,
    ("evaluation",),
  ),
  CatalogueEntry(
    "openbookqa",
    "openbookqa",
    (
      _at(
        _AI2,
        "OpenBookQA-V1-Sep2018.zip",
        1446098,
        "82368cf05df2e3b309c17d162e10b888b4d768fad6e171e0a041954c8553be46",
        members=("OpenBookQA-V1-Sep2018/Data/Main/*.jsonl",),
      ),
    ),
    {split: f"OpenBookQA-V1-Sep2018/Data/Main/{split}.jsonl" for split in ("train", "dev", "test")},
    "not stated",
    False,
    ("evaluation",),
  ),
  # Read here, and no part of the paper.
  CatalogueEntry(
    "squad",
    "squad",
    (
      _at(_SQUAD, "train-v1.1.json", 30288272, "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955"),
      _at(_SQUAD, "dev-v1.1.json", 4854279, "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9"),
    ),
    {"train": "train-v1.1.json", "dev": "dev-v1.1.json"},
    "CC-BY-SA-4.0",
    True,
  ),
  CatalogueEntry(
    "hotpot_qa",
    "hotpot_qa",
    (
      _at(
        "http://curtis.ml.cmu.edu/datasets/hotpot",
        "hotpot_train_v1.1.json",
        566426227,
        "26650cf50234ef5fb2e664ed70bbecdfd87815e6bffc257e068efea5cf7cd316",
      ),
      _at(
        "http://curtis.ml.cmu.edu/datasets/hotpot",
        "hotpot_dev_distractor_v1.json",
        46320117,
        "4e9ecb5c8d3b719f624d66b60f8d56bf227f03914f5f0753d6fa1b359d7104ea",
      ),
    ),
    {"train": "hotpot_train_v1.1.json", "dev": "hotpot_dev_distractor_v1.json"},
    "CC-BY-SA-4.0",
    True,
  ),
  # Corpora.
  CatalogueEntry(
    "wikipedia_2021",
    "jsonl",
    (_at("https://dl.fbaipublicfiles.com/atlas/corpora/wiki/enwiki-dec2021", "text-list-100-sec.jsonl"),),
    {"all": "text-list-100-sec.jsonl"},
    "CC-BY-SA-3.0 (Wikipedia)",
    True,
    ("corpus",),
  ),
  CatalogueEntry(
    "wiki_dpr",
    "dpr",
    (
      _at(
        "https://dl.fbaipublicfiles.com/dpr/wikipedia_split",
        "psgs_w100.tsv.gz",
        4694541059,
        "c39b020c855a2b5c25ffef3abe4a3b6f9b829ad7dbc14ec3d163d34d7c53ea8d",
      ),
    ),
    {"all": "psgs_w100.tsv.gz"},
    "CC-BY-SA-3.0 (Wikipedia)",
    True,
  ),
  CatalogueEntry(
    "kilt_wikipedia",
    "kilt",
    (
      _at(
        _KILT,
        "kilt_knowledgesource.json",
        37318876722,
        "f966d6f09c4ff91656db5c56c384f136b0c495c7083c043586b8cb1033c389a5",
      ),
    ),
    {"all": "kilt_knowledgesource.json"},
    "CC-BY-SA-3.0 (Wikipedia)",
    True,
  ),
]

#: Name -> entry, those of the paper first.
CATALOGUE: dict[str, CatalogueEntry] = {entry.name: entry for entry in _ENTRIES}
