"""Collections of a Milvus server: filled from stored embeddings, whole or not at all, and checked before use."""

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from radit_jax.errors import UserError
from radit_jax.progress import Progress, silent
from radit_jax.retrieval import milvus_client
from radit_jax.retrieval.metadata import MetadataFilter
from radit_jax.retrieval.milvus_client import EVERYWHERE, ask, connect, field_name, told
from radit_jax.retrieval.rows import Rows
from radit_jax.retrieval.scann import EXACT_BELOW

#: Seconds between two looks at whether a server has built an index or read a collection, and most without progress.
_LOOK_EVERY_S, _PATIENCE_S = 0.2, 3600.0
#: Rows of one message at most.
_MESSAGE_ROWS = 2**13
#: A collection has 64 fields at most; the row and its embedding take two.
_MOST_FIELDS = 60
#: Rows, and embeddings searched with, that show whether a server looks everywhere.
_WITNESSES, _SHOWN_TO = 4096, 4


class NotWhole(UserError):
  """A server answers that a collection is missing, another, or not filled to the end: it may be filled again."""


def choose(version: str, kind: str, count: int) -> dict[str, Any]:
  """What a server builds: the first of these that it has.

  Lite compares all (it takes the names of other types, and fails when they are searched). Zilliz Cloud chooses by
  itself. Other servers compare all below 20,000 passages, and above an eighth of 4√N partitions, uncompressed: of the
  types of all versions the one that can also look everywhere, without which a filtered search would not be exact.

  Args:
    version: as the server says it.
    kind: "milvus", or what else pymilvus tells from the address.
    count: passages.

  Example:
    >>> choose("v2.5.4", "milvus", 1_000_000), choose("milvus_lite-3.2.2", "milvus", 1_000_000)
    ({'index_type': 'IVF_FLAT', 'leaves': 4000}, {'index_type': 'FLAT'})
  """
  if kind != "milvus" or "zilliz" in version.lower():
    return {"index_type": "AUTOINDEX"}
  if "lite" in version.lower() or count < EXACT_BELOW:
    return {"index_type": "FLAT"}
  return {"index_type": "IVF_FLAT", "leaves": min(EVERYWHERE, 4 * math.isqrt(count))}


def fill(
  uri: str,
  rows: Rows,
  held: Int[np.ndarray, "H"],
  fingerprint: str,
  metadata: MetadataFilter | None,
  *,
  progress: Progress = silent,
) -> dict[str, Any]:
  """Puts embeddings into a collection of their own, whole or not at all.

  Its name comes from its content, so that two indexes never share one that differs, and what a killed call has left
  behind is found, and made again if it is not whole.

  Args:
    uri: of the server.
    rows: ``[N, E]``, finite.
    held: those that the collection holds, ascending; it numbers them by their places.
    fingerprint: of the embeddings, the metadata and the choice.
    metadata: of all rows; None for none.
    progress: told after every message.

  Returns:
    ``method``, ``collection``, ``vectors`` (name of the embeddings' field), ``index_type``, ``leaves`` where there are
    partitions, ``fields`` (the metadata's, in the order of their numbers), ``longest``, the length of the longest
    embedding, and ``everywhere``, whether the server has shown that it looks at every partition where it is told to.

  Raises:
    UserError: a server that does not answer or refuses, or too many metadata fields.
  """
  fields = () if metadata is None else metadata.fields
  if len(fields) > _MOST_FIELDS:
    raise UserError(f"metadata has {len(fields)} fields, a Milvus collection holds {_MOST_FIELDS}; leave some out")
  with contextlib.closing(connect(uri)) as client:
    return _fill(uri, client, rows, held, fingerprint, fields, metadata, progress)


def is_whole(uri: str, parameters: Mapping[str, Any], shape: tuple[int, int]) -> bool:
  """Whether a server has a collection as it was filled.

  Raises:
    UserError: a server that does not answer.
  """
  with contextlib.closing(connect(uri)) as client:
    try:
      check(uri, client, parameters, shape)
    except NotWhole:
      return False
  return True


def looks_everywhere(uri: str, parameters: Mapping[str, Any], rows: Rows, held: Int[np.ndarray, "H"]) -> bool:
  """Whether a server that has a collection whole shows what ``everywhere`` says of it, see :func:`fill`.

  Raises:
    UserError: a server that does not answer.
  """
  with contextlib.closing(connect(uri)) as client:
    return _looks_everywhere(uri, client, parameters, rows, held)


def _fill(
  uri: str,
  client: Any,
  rows: Rows,
  held: Int[np.ndarray, "H"],
  fingerprint: str,
  fields: tuple[str, ...],
  metadata: MetadataFilter | None,
  progress: Progress,
) -> dict[str, Any]:
  with told(uri, "does not say what it is"):
    chosen = choose(client.get_server_version(timeout=milvus_client.ANSWER_S), client.get_server_type(), len(held))
  shape = len(held), rows.shape[1]
  digest = hashlib.sha256(json.dumps([fingerprint, chosen, shape]).encode()).hexdigest()[:32]
  longest = max(float(np.linalg.norm(block.astype(np.float64), axis=1).max()) for _, block in rows.blocks())
  # Lite keeps no descriptions of collections; names of fields are kept by all.
  parameters = {"method": "milvus", "collection": f"radit_{digest}", "vectors": f"embedding_{digest}", **chosen}
  parameters |= {"fields": list(fields), "longest": longest}
  there = False
  with contextlib.suppress(NotWhole):
    check(uri, client, parameters, shape)
    there = True
  try:
    if not there:
      _make(uri, client, parameters, shape[1], len(fields))
      columns = [metadata.codes(field) for field in fields] if metadata is not None else []
      _insert(uri, client, parameters, rows, held, columns, progress)
      _finish(uri, client, parameters, progress)
      check(uri, client, parameters, shape)
    everywhere = _looks_everywhere(uri, client, parameters, rows, held)
  except BaseException:
    if not there:
      with contextlib.suppress(Exception):  # a server that has gone keeps it; its name says what it is
        client.drop_collection(parameters["collection"], timeout=milvus_client.CONNECT_S)
    raise
  return {**parameters, "everywhere": everywhere}


def _looks_everywhere(
  uri: str, client: Any, parameters: Mapping[str, Any], rows: Rows, held: Int[np.ndarray, "H"]
) -> bool:
  """Whether a filtered search names every row that its filter lets through, near to the query or not.

  The exactness of filtered searches rests on it, and a server that leaves out partitions gives no other sign of it.
  One that chooses its index by itself cannot be told to look everywhere, and is not asked.
  """
  if parameters["index_type"] == "AUTOINDEX":
    return False
  spread = np.unique(np.linspace(0, len(held) - 1, _WITNESSES).astype(np.int64))
  queries = rows[held[spread[:: -(-len(spread) // _SHOWN_TO)]]]
  answers = ask(uri, client, parameters, queries, len(spread), EVERYWHERE, f"row in {spread.tolist()}")
  return all(np.array_equal(np.sort(np.array(answer.ids, np.int64)), spread) for answer in answers)


def _make(uri: str, client: Any, parameters: Mapping[str, Any], width: int, fields: int) -> None:
  from pymilvus import DataType

  with told(uri, "did not make a collection"):
    client.drop_collection(parameters["collection"], timeout=milvus_client.ANSWER_S)
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("row", DataType.INT64, is_primary=True)
    schema.add_field(parameters["vectors"], DataType.FLOAT_VECTOR, dim=width)
    for number in range(fields):
      schema.add_field(field_name(number), DataType.INT64)
    client.create_collection(parameters["collection"], schema=schema, timeout=milvus_client.ANSWER_S)


def _insert(
  uri: str,
  client: Any,
  parameters: Mapping[str, Any],
  rows: Rows,
  held: Int[np.ndarray, "H"],
  columns: list[np.ndarray],
  progress: Progress,
) -> None:
  step = max(1, min(_MESSAGE_ROWS, milvus_client.MESSAGE_BYTES // (4 * rows.shape[1] + 16 * (1 + len(columns)))))
  for first in range(0, len(held), step):
    chosen = held[first : first + step]
    block = rows[chosen]
    codes = [column[chosen].tolist() for column in columns]
    entities = [
      {"row": first + i, parameters["vectors"]: block[i]} | {field_name(n): c[i] for n, c in enumerate(codes)}
      for i in range(len(block))
    ]
    with told(uri, f"did not take rows {first} to {first + len(block) - 1}"):
      client.insert(parameters["collection"], entities, timeout=milvus_client.ANSWER_S)
    progress("fill", first + len(block), len(held), "passages")


def _finish(uri: str, client: Any, parameters: Mapping[str, Any], progress: Progress) -> None:
  """Has the index built and read into memory, however long the server takes as long as it goes on."""
  name, vectors = parameters["collection"], parameters["vectors"]
  wanted = client.prepare_index_params()
  # One level deeper than pymilvus asks for: it sends what is in `params` one by one, and Lite reads `params` alone.
  params = {"params": {"nlist": parameters["leaves"]}} if "leaves" in parameters else {}
  wanted.add_index(vectors, index_type=parameters["index_type"], index_name=vectors, metric_type="IP", params=params)
  with told(uri, "did not build its index"):
    client.flush(name, timeout=_PATIENCE_S)
    client.create_index(name, wanted, timeout=milvus_client.ANSWER_S, sync=False)

    def built() -> tuple[bool, Any]:
      state = client.describe_index(name, vectors, timeout=milvus_client.ANSWER_S)
      done, total = int(state.get("indexed_rows", 0)), int(state.get("total_rows", 0))
      progress("build", done, max(done, total), "passages")
      return state.get("state") == "Finished" and not state.get("pending_index_rows"), done

    _wait(uri, built)
  _load(uri, client, name)


def _load(uri: str, client: Any, name: str) -> None:
  with told(uri, "did not read its collection into memory"):
    client.load_collection(name, timeout=milvus_client.ANSWER_S, _async=True)

    def loaded() -> tuple[bool, Any]:
      state = client.get_load_state(name, timeout=milvus_client.ANSWER_S)
      return str(state["state"]) in ("Loaded", "LoadState.Loaded"), state.get("progress")

    _wait(uri, loaded)


def _wait(uri: str, look: Callable[[], tuple[bool, Any]]) -> None:
  """Looks until it is done; a server that gets no further is given up."""
  last, since = None, time.monotonic()
  while True:
    done, progress = look()
    if done:
      return
    if progress != last:
      last, since = progress, time.monotonic()
    if time.monotonic() - since > _PATIENCE_S:
      raise UserError(f"{uri}: Milvus has been at {last} for {_PATIENCE_S:.0f} s; look at its logs, and try again")
    time.sleep(_LOOK_EVERY_S)


def check(uri: str, client: Any, parameters: Mapping[str, Any], shape: tuple[int, int]) -> None:
  """Refuses a collection that is not the one that was filled; a whole one is in memory afterwards.

  Raises:
    NotWhole: the server says that it is missing, another, or without some rows or its index.
    UserError: the server does not answer.
  """
  name, vectors = parameters["collection"], parameters["vectors"]
  with told(uri, f"does not describe the collection {name}"):
    if not client.has_collection(name, timeout=milvus_client.ANSWER_S):
      raise NotWhole(f"{uri}: no collection {name}; build the index again, or give the address that has it")
    fields = {
      field["name"]: field for field in client.describe_collection(name, timeout=milvus_client.ANSWER_S)["fields"]
    }
    indexed = client.list_indexes(name, timeout=milvus_client.ANSWER_S)
  if vectors not in fields:
    raise NotWhole(f"{uri}: the collection {name} is not this index's (no field {vectors}); build the index again")
  width = int(fields[vectors]["params"]["dim"])
  if width != shape[1]:
    raise NotWhole(
      f"{uri}: the collection {name} has embeddings of width {width}, the index {shape[1]}; build it again"
    )
  if not indexed:  # a fill was killed; servers cannot read such a collection into memory
    raise NotWhole(f"{uri}: the collection {name} was not filled to the end; build the index again")
  _load(uri, client, name)
  with told(uri, f"does not count the collection {name}"):
    answer = client.query(
      name, filter="", output_fields=["count(*)"], consistency_level="Strong", timeout=milvus_client.ANSWER_S
    )
  if (count := int(answer[0]["count(*)"])) != shape[0]:
    raise NotWhole(f"{uri}: the collection {name} has {count} rows, the index {shape[0]}; build the index again")
