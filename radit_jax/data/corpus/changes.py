"""Which rows of a passage store go, and which come, when documents change: arithmetic on digests alone.

Rows keep their numbers. A passage that is the same in every respect keeps its row; any other of a changed document gets
a new one, and the old one goes. Memory is some 100 bytes for each passage of the store and of what is given.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int, UInt64

from radit_jax.data.corpus.content import NAME, OWNER, RECORD, TEXT, match


@dataclasses.dataclass(frozen=True)
class Pieces:
  """The tables of a store, or of a corpus that was cut, see :mod:`radit_jax.data.corpus.table`.

  Attributes:
    documents: by the digests of their ids.
    left_out: ordinals of pieces that are not kept, ascending.
    kept: for each of them the one that stands for it.
    content: ``[rows, 4, 2]`` digests of those that are kept, in the order of their ordinals.
  """

  documents: np.ndarray
  left_out: Int[np.ndarray, "l"]
  kept: Int[np.ndarray, "l"]
  content: UInt64[np.ndarray, "N 4 2"]

  def ordinals(self) -> Int[np.ndarray, "N"]:
    """Of the rows."""
    return np.delete(np.arange(self.size), self.left_out)

  def rows(self) -> Int[np.ndarray, "O"]:
    """Row of each ordinal, of the piece that stands for it where it is left out."""
    kept = np.ones(self.size, bool)
    kept[self.left_out] = False
    rows = np.cumsum(kept) - 1
    rows[self.left_out] = rows[self.kept]
    return rows

  @property
  def size(self) -> int:
    """How many ordinals there are."""
    return len(self.content) + len(self.left_out)


@dataclasses.dataclass(frozen=True)
class Changes:
  """What an update does.

  Attributes:
    removed: rows of the store that go, ascending.
    added: pieces of the update that become rows, in their order: their places among those it keeps.
    documents: table of the new store.
    left_out: of the new store: what is added to that of the old one.
    kept: likewise.
    counts: of documents that are new, changed and removed.
    lost: digests of the ids of removed documents.
    orphans: rows that would go, although a document that the update does not speak of has the same passage.
    clashes: added pieces whose id a row has that stays; places in ``added``.
  """

  removed: Int[np.ndarray, "r"]
  added: Int[np.ndarray, "a"]
  documents: np.ndarray
  left_out: Int[np.ndarray, "l"]
  kept: Int[np.ndarray, "l"]
  counts: dict[str, int]
  lost: UInt64[np.ndarray, "d 2"]
  orphans: Int[np.ndarray, "o"]
  clashes: Int[np.ndarray, "c"]


def compare(
  store: Pieces,
  update: Pieces,
  records: UInt64[np.ndarray, "O 2"],
  removed: Int[np.ndarray, "r"],
  *,
  delete_missing: bool,
) -> Changes:
  """What becomes of a store when documents are given anew.

  Args:
    store: as it is.
    update: documents that are new, or take the place of those of the same ids.
    records: digests of the records of all pieces of the update, also of those it leaves out.
    removed: rows of the store that went before.
    delete_missing: documents that the update does not have go.
  """
  rows, size = len(store.content), store.size
  alive = np.ones(rows, bool)
  alive[removed] = False
  place = match(_ids(update.documents), _ids(store.documents))
  spoken_of = np.full(len(store.documents), delete_missing)
  spoken_of[place[place >= 0]] = True
  may_go = alive.copy()
  if not delete_missing:
    may_go &= match(store.content[:, OWNER], _ids(update.documents)) >= 0
  candidates, others = np.flatnonzero(may_go), np.flatnonzero(alive & ~may_go)

  # Row of each piece of the update: one that stays, one that another document has, or a new one.
  target = np.full(len(update.content), -1)
  same = match(records, store.content[candidates, RECORD])
  same[update.left_out[update.left_out == update.kept]] = -1  # of documents that are left out
  found = same >= 0
  target[update.rows()[found]] = candidates[same[found]]  # so of several with one text the one that has a row keeps it
  elsewhere = match(update.content[:, TEXT], store.content[others, TEXT])
  found = (target < 0) & (elsewhere >= 0)
  target[found] = others[elsewhere[found]]
  added = np.flatnonzero(target < 0)
  target[added] = rows + np.arange(len(added))
  stays = np.zeros(rows, bool)
  stays[target[target < rows]] = True
  gone = candidates[~stays[candidates]]

  # Documents whose pieces are all where they were keep their entry.
  row_of_piece = target[update.rows()]
  unchanged = _unchanged(store, update, place, row_of_piece)
  keeps = ~spoken_of
  keeps[place[unchanged]] = True
  changed = update.documents[~unchanged]
  pieces = np.flatnonzero(_pieces_of(changed, update.size))
  documents = changed.copy()
  documents["first"] = size + np.searchsorted(pieces, changed["first"])
  targets = row_of_piece[pieces]
  is_row = np.isin(pieces, update.ordinals()[added])
  ordinal_of = np.concatenate([store.ordinals(), size + np.flatnonzero(is_row)])
  table = np.concatenate([store.documents[keeps], documents])
  lost = np.ones(len(store.documents), bool)
  lost[place[place >= 0]] = False
  staying = alive.copy()
  staying[gone] = False
  standing = np.flatnonzero(staying)
  is_gone = np.zeros(rows, bool)
  is_gone[gone] = True
  return Changes(
    removed=gone,
    added=added,
    documents=table[np.lexsort((table["low"], table["high"]))],
    left_out=size + np.flatnonzero(~is_row),
    kept=ordinal_of[targets[~is_row]],
    counts={
      "new": int(np.count_nonzero(place < 0)),
      "changed": int(np.count_nonzero((place >= 0) & ~unchanged)),
      "removed": int(np.count_nonzero(spoken_of & lost)),
    },
    lost=_ids(store.documents[spoken_of & lost]),
    orphans=_orphans(store, store.documents[~spoken_of], is_gone),
    clashes=np.flatnonzero(match(update.content[added, NAME], store.content[standing, NAME]) >= 0),
  )


def _ids(documents: np.ndarray) -> UInt64[np.ndarray, "n 2"]:
  return np.stack([documents["high"], documents["low"]], axis=1)


def _pieces_of(documents: np.ndarray, size: int) -> Bool[np.ndarray, "O"]:
  """Which ordinals are pieces of these documents."""
  steps = np.zeros(size + 1, np.int64)
  first = documents["first"].astype(np.int64)
  np.add.at(steps, first, 1)
  np.add.at(steps, first + documents["count"].astype(np.int64), -1)
  return np.cumsum(steps)[:-1] > 0


def _unchanged(
  store: Pieces, update: Pieces, place: Int[np.ndarray, "d"], row_of_piece: Int[np.ndarray, "O"]
) -> Bool[np.ndarray, "d"]:
  """Documents of the update whose pieces are the rows that they were."""
  count = update.documents["count"].astype(np.int64)
  unchanged = (place >= 0) & (count == store.documents["count"].astype(np.int64)[place] if len(place) else False)
  which = np.flatnonzero(unchanged)
  lengths = count[which]
  within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
  mine = np.repeat(update.documents["first"].astype(np.int64)[which], lengths) + within
  theirs = np.repeat(store.documents["first"].astype(np.int64)[place[which]], lengths) + within
  differs = row_of_piece[mine] != store.rows()[theirs]
  unchanged[np.repeat(which, lengths)[differs]] = False
  return unchanged


def _orphans(store: Pieces, staying: np.ndarray, is_gone: Bool[np.ndarray, "N"]) -> Int[np.ndarray, "o"]:
  """Rows that go, although a document that stays has left out the same piece because of them."""
  rows = store.rows()[store.left_out[_pieces_of(staying, store.size)[store.left_out]]]
  return np.unique(rows[is_gone[rows]])
