"""A Milvus server as a source of candidates. It is given row numbers, embeddings, and numbers in place of metadata."""

import contextlib
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from radit_jax.errors import UserError
from radit_jax.progress import Progress, silent
from radit_jax.retrieval.metadata import Allowed, MetadataFilter
from radit_jax.retrieval.rows import Rows
from radit_jax.retrieval.scann import EXACT_BELOW, Settings, num_candidates

#: Environment variable with the token, or user:password; never written anywhere.
TOKEN = "MILVUS_TOKEN"
#: Seconds that a server may take to accept a connection, and to answer one call.
CONNECT_S, ANSWER_S = 10.0, 60.0
#: Seconds between two looks at whether it has built an index or read a collection, and most of them without progress.
_LOOK_EVERY_S, _PATIENCE_S = 0.2, 3600.0
#: Bytes of one message, of the 64 MiB that servers take at the least; rows and queries in it.
_MESSAGE_BYTES, _MESSAGE_ROWS, _MESSAGE_QUERIES = 2**23, 2**13, 2**10
#: Candidates of a query at most: as many as a server returns. And of a message.
_MOST, _MOST_OF_MESSAGE = 2**14, 2**20
#: Values that a filter may name; with more, the allowed passages are compared here.
_MOST_VALUES = 2**13
#: A collection has 64 fields at most; the row and its embedding take two.
_MOST_FIELDS = 60


class MilvusCandidates:
  """A collection that :func:`fill` made.

  Args:
    uri: of the server.
    parameters: what :func:`fill` returned.
    settings: ``reorder`` is the number of candidates at least.
    shape: ``(N, E)`` of the embeddings that it must hold.

  Raises:
    UserError: a server that does not answer, or a collection that is missing, is not this index's, or is not whole.
  """

  def __init__(
    self,
    uri: str,
    parameters: Mapping[str, Any],
    settings: Settings,
    shape: tuple[int, int],
  ):
    self._uri, self._parameters, self._settings, self._count = uri, parameters, settings, shape[0]
    self._client = connect(uri)
    _check(uri, self._client, parameters, shape)

  def with_settings(self, settings: Settings) -> "MilvusCandidates":
    """The same collection under other settings."""
    other = object.__new__(MilvusCandidates)
    other.__dict__.update(self.__dict__, _settings=settings)
    return other

  def __call__(self, queries: Float[np.ndarray, "Q E"], k: int) -> Int[np.ndarray, "Q C"]:
    """See :class:`radit_jax.retrieval.index.Candidates`."""
    return self._search(queries, k, self._settings.leaves_to_search, "")[0]

  def within(
    self, queries: Float[np.ndarray, "Q E"], k: int, allowed: Allowed
  ) -> tuple[Int[np.ndarray, "Q C"], Float[np.ndarray, "Q"]]:
    """See :class:`radit_jax.retrieval.index.Candidates`; the server looks at every partition, so that the bound holds.

    Values are sent as the numbers that they have in the metadata, fields as their own: no text of a caller ever
    becomes part of an expression, and what is equal is decided in one place.
    """
    values = sum(map(len, allowed.codes.values()))
    if self._parameters["index_type"] == "AUTOINDEX" or values > _MOST_VALUES:
      return np.full((len(queries), k), -1, np.int64), np.full(len(queries), np.inf)
    numbers = {field: number for number, field in enumerate(self._parameters["fields"])}
    expression = " and ".join(f"{_field(numbers[f])} in {[int(code) for code in c]}" for f, c in allowed.codes.items())
    ids, products = self._search(queries, k, self._parameters.get("leaves"), expression)
    found = (ids >= 0).sum(axis=1)
    least = np.where(found < ids.shape[1], -np.inf, products.min(axis=1, initial=np.inf))
    # What float32 sums may be wrong by; and a server that names fewer rows than there are is not believed.
    length = np.linalg.norm(queries.astype(np.float64), axis=1)
    wrong = 4 * queries.shape[1] * np.finfo(np.float32).eps * length * self._parameters["longest"]
    return ids, np.where(found < min(ids.shape[1], len(allowed)), np.inf, least + wrong)

  def _search(
    self, queries: Float[np.ndarray, "Q E"], k: int, leaves: int | None, expression: str
  ) -> tuple[Int[np.ndarray, "Q C"], Float[np.ndarray, "Q C"]]:
    """Rows and products as the server has them; -1 and -inf where it names no more."""
    wanted = min(max(num_candidates(k), self._settings.reorder), self._count)
    if wanted > _MOST:
      return np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf)
    ids = np.full((len(queries), wanted), -1, np.int64)
    products = np.full((len(queries), wanted), -np.inf)
    step = max(1, min(_MESSAGE_QUERIES, _MESSAGE_BYTES // (4 * queries.shape[1]), _MOST_OF_MESSAGE // max(1, wanted)))
    for first in range(0, len(queries), step):
      with _told(self._uri, "did not search"):
        answers = self._client.search(
          self._parameters["collection"],
          data=queries[first : first + step],
          limit=wanted,
          filter=expression,
          anns_field=self._parameters["vectors"],
          search_params={"metric_type": "IP", "params": {} if leaves is None else {"nprobe": leaves}},
          output_fields=["row"],
          consistency_level="Bounded",
          timeout=ANSWER_S,
        )
      for query, answer in enumerate(answers, first):
        rows = np.array(answer.ids, np.int64)
        if rows.size and not (rows.min() >= 0 and rows.max() < self._count):
          raise UserError(
            f"{self._uri}: the collection {self._parameters['collection']} names a row {rows.max()}, the "
            f"index has {self._count}; build the index again"
          )
        ids[query, : len(rows)] = rows
        products[query, : len(rows)] = answer.distances
    return ids, products


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
  return {"index_type": "IVF_FLAT", "leaves": min(65_536, 4 * math.isqrt(count))}


def fill(
  uri: str, rows: Rows, fingerprint: str, metadata: MetadataFilter | None, *, progress: Progress = silent
) -> dict[str, Any]:
  """Puts embeddings into a collection of their own, whole or not at all.

  Its name comes from its content, so that two indexes never share one that differs, and what a killed call has left
  behind is found, and made again if it is not whole.

  Args:
    uri: of the server.
    rows: ``[N, E]``, finite.
    fingerprint: of the embeddings and the metadata.
    metadata: of the rows; None for none.
    progress: told after every message.

  Returns:
    ``method``, ``collection``, ``vectors`` (name of the embeddings' field), ``index_type``, ``leaves`` where there are
    partitions, ``fields`` (the metadata's, in the order of their numbers), and ``longest``, the length of the longest
    embedding.

  Raises:
    UserError: a server that does not answer or refuses, or too many metadata fields.
  """
  fields = () if metadata is None else metadata.fields
  if len(fields) > _MOST_FIELDS:
    raise UserError(f"metadata has {len(fields)} fields, a Milvus collection holds {_MOST_FIELDS}; leave some out")
  with contextlib.closing(connect(uri)) as client:
    return _fill(uri, client, rows, fingerprint, fields, metadata, progress)


def _fill(
  uri: str,
  client: Any,
  rows: Rows,
  fingerprint: str,
  fields: tuple[str, ...],
  metadata: MetadataFilter | None,
  progress: Progress,
) -> dict[str, Any]:
  with _told(uri, "does not say what it is"):
    chosen = choose(client.get_server_version(timeout=ANSWER_S), client.get_server_type(), len(rows))
  digest = hashlib.sha256(json.dumps([fingerprint, chosen, list(rows.shape)]).encode()).hexdigest()[:32]
  longest = max(float(np.linalg.norm(block.astype(np.float64), axis=1).max()) for _, block in rows.blocks())
  # Lite keeps no descriptions of collections; names of fields are kept by all.
  parameters = {"method": "milvus", "collection": f"radit_{digest}", "vectors": f"embedding_{digest}", **chosen}
  parameters |= {"fields": list(fields), "longest": longest}
  with contextlib.suppress(UserError):
    _check(uri, client, parameters, rows.shape)
    return parameters
  try:
    _make(uri, client, parameters, rows.shape[1], len(fields))
    columns = [metadata.codes(field) for field in fields] if metadata is not None else []
    _insert(uri, client, parameters, rows, columns, progress)
    _finish(uri, client, parameters, progress)
    _check(uri, client, parameters, rows.shape)
  except BaseException:
    with contextlib.suppress(Exception):  # a server that has gone keeps it; its name says what it is
      client.drop_collection(parameters["collection"], timeout=CONNECT_S)
    raise
  return parameters


def _make(uri: str, client: Any, parameters: Mapping[str, Any], width: int, fields: int) -> None:
  from pymilvus import DataType

  with _told(uri, "did not make a collection"):
    client.drop_collection(parameters["collection"], timeout=ANSWER_S)
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("row", DataType.INT64, is_primary=True)
    schema.add_field(parameters["vectors"], DataType.FLOAT_VECTOR, dim=width)
    for number in range(fields):
      schema.add_field(_field(number), DataType.INT64)
    client.create_collection(parameters["collection"], schema=schema, timeout=ANSWER_S)


def _insert(
  uri: str, client: Any, parameters: Mapping[str, Any], rows: Rows, columns: list[np.ndarray], progress: Progress
) -> None:
  step = max(1, min(_MESSAGE_ROWS, _MESSAGE_BYTES // (4 * rows.shape[1] + 16 * (1 + len(columns)))))
  for first in range(0, len(rows), step):
    block = rows[first : first + step]
    codes = [column[first : first + step].tolist() for column in columns]
    entities = [
      {"row": first + i, parameters["vectors"]: block[i]} | {_field(n): c[i] for n, c in enumerate(codes)}
      for i in range(len(block))
    ]
    with _told(uri, f"did not take rows {first} to {first + len(block) - 1}"):
      client.insert(parameters["collection"], entities, timeout=ANSWER_S)
    progress("fill", first + len(block), len(rows), "passages")


def _finish(uri: str, client: Any, parameters: Mapping[str, Any], progress: Progress) -> None:
  """Has the index built and read into memory, however long the server takes as long as it goes on."""
  name, vectors = parameters["collection"], parameters["vectors"]
  wanted = client.prepare_index_params()
  params = {"nlist": parameters["leaves"]} if "leaves" in parameters else {}
  wanted.add_index(vectors, index_type=parameters["index_type"], index_name=vectors, metric_type="IP", params=params)
  with _told(uri, "did not build its index"):
    client.flush(name, timeout=_PATIENCE_S)
    client.create_index(name, wanted, timeout=ANSWER_S, sync=False)

    def built() -> tuple[bool, Any]:
      state = client.describe_index(name, vectors, timeout=ANSWER_S)
      done, total = int(state.get("indexed_rows", 0)), int(state.get("total_rows", 0))
      progress("build", done, max(done, total), "passages")
      return state.get("state") == "Finished" and not state.get("pending_index_rows"), done

    _wait(uri, built)
  _load(uri, client, name)


def _load(uri: str, client: Any, name: str) -> None:
  with _told(uri, "did not read its collection into memory"):
    client.load_collection(name, timeout=ANSWER_S, _async=True)

    def loaded() -> tuple[bool, Any]:
      state = client.get_load_state(name, timeout=ANSWER_S)
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


def _check(uri: str, client: Any, parameters: Mapping[str, Any], shape: tuple[int, int]) -> None:
  """Refuses a collection that is not the one that was filled; a whole one is in memory afterwards."""
  name, vectors = parameters["collection"], parameters["vectors"]
  with _told(uri, f"does not describe the collection {name}"):
    if not client.has_collection(name, timeout=ANSWER_S):
      raise UserError(f"{uri}: no collection {name}; build the index again, or give the address that has it")
    fields = {field["name"]: field for field in client.describe_collection(name, timeout=ANSWER_S)["fields"]}
  if vectors not in fields:
    raise UserError(f"{uri}: the collection {name} is not this index's (no field {vectors}); build the index again")
  width = int(fields[vectors]["params"]["dim"])
  if width != shape[1]:
    raise UserError(
      f"{uri}: the collection {name} has embeddings of width {width}, the index {shape[1]}; build it again"
    )
  _load(uri, client, name)
  with _told(uri, f"does not count the collection {name}"):
    answer = client.query(name, filter="", output_fields=["count(*)"], consistency_level="Strong", timeout=ANSWER_S)
  if (count := int(answer[0]["count(*)"])) != shape[0]:
    raise UserError(f"{uri}: the collection {name} has {count} rows, the index {shape[0]}; build the index again")


def connect(uri: str) -> Any:
  """A client of a server that answers.

  Raises:
    UserError: pymilvus is not installed, or the server is down or takes too long.
  """
  try:
    import pymilvus
  except ImportError as e:
    raise UserError(
      f'backend milvus: pymilvus cannot be imported here ({e}); pip install "radit_jax[milvus]", or use another backend'
    ) from None
  logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # what it logs with its traceback, it raises too
  with _told(uri, "cannot be reached"):
    # pymilvus asks every ten seconds whether an idle server is there, for which Lite ends the connection.
    seldom = {"grpc.keepalive_time_ms": 300_000, "grpc.keepalive_permit_without_calls": False}
    return pymilvus.MilvusClient(
      uri, token=os.environ.get(TOKEN, ""), timeout=CONNECT_S, dedicated=True, grpc_options=seldom
    )


@contextlib.contextmanager
def _told(uri: str, what: str) -> Iterator[None]:
  """What the server or the way to it gets wrong, in one line, without the token."""
  import grpc
  from pymilvus.exceptions import MilvusException

  try:
    yield
  except (MilvusException, grpc.RpcError, grpc.FutureTimeoutError, OSError) as e:
    said = getattr(e, "message", None) or (e.details() if isinstance(e, grpc.Call) else str(e)) or type(e).__name__
    if token := os.environ.get(TOKEN):
      said = said.replace(token, f"[{TOKEN}]")
    raise UserError(
      f"{uri}: Milvus {what} ({' '.join(said.split())[:200]}); is it up, and the address right?"
    ) from None


def _field(number: int) -> str:
  """The collection's name of a metadata field."""
  return f"field_{number}"
