"""The way to a Milvus server: a client of one that answers, and one line for everything that goes wrong."""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from radit_jax.errors import UserError

#: Environment variable with the token, or user:password; never written anywhere.
TOKEN = "MILVUS_TOKEN"
#: Seconds that a server may take to accept a connection, and to answer one call.
CONNECT_S, ANSWER_S = 10.0, 60.0
#: Bytes of one message, of the 64 MiB that servers take at the least.
MESSAGE_BYTES = 2**23
#: Partitions of a collection at most: who asks for so many is shown all, whatever the server made of what it was told.
EVERYWHERE = 65_536


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
  with told(uri, "cannot be reached"):
    # pymilvus asks every ten seconds whether an idle server is there, for which Lite ends the connection.
    seldom = {"grpc.keepalive_time_ms": 300_000, "grpc.keepalive_permit_without_calls": False}
    return pymilvus.MilvusClient(
      uri, token=os.environ.get(TOKEN, ""), timeout=CONNECT_S, dedicated=True, grpc_options=seldom
    )


@contextlib.contextmanager
def told(uri: str, what: str) -> Iterator[None]:
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


def ask(
  uri: str,
  client: Any,
  parameters: Mapping[str, Any],
  queries: Float[np.ndarray, "Q E"],
  wanted: int,
  leaves: int | None,
  expression: str,
) -> Any:
  """What the server answers to one message of queries."""
  with told(uri, "did not search"):
    return client.search(
      parameters["collection"],
      data=queries,
      limit=wanted,
      filter=expression,
      anns_field=parameters["vectors"],
      search_params={"metric_type": "IP", "params": {"nprobe": leaves} if leaves and "leaves" in parameters else {}},
      output_fields=["row"],
      consistency_level="Bounded",
      timeout=ANSWER_S,
    )


def field_name(number: int) -> str:
  """The collection's name of a metadata field."""
  return f"field_{number}"
