"""`PackedBatchSampler`: the batches of a plan, shared out among ranks."""

from __future__ import annotations

import functools
import logging
import zlib
from collections.abc import Iterator
from os import PathLike
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from virnucpro.data.plan import PackingPlan, as_plan
from virnucpro.kernel.arguments import check_bool, check_integer, plain
from virnucpro.model.epochs import Batches, Epoch, batch_costs, deal, pack_windows
from virnucpro.model.ranks import check_rank, find_rank
from virnucpro.model.sampler_state import STATE_VERSION, check_state
from virnucpro.model.sharing import Reader, describe_second_sharing, find_reader

logger = logging.getLogger(__name__)

# Rows that are hashed at a time.
CHUNK = 2**20
# How often an epoch is packed anew until it has at most as many batches as the others.
MAX_DRAWS = 8
# Draws that determine the number of batches of an epoch.
FIRST_DRAWS = 3


class PackedBatchSampler(Sampler[list[int]]):
    """The batches of a plan as lists of rows, for a data set indexed by row.

    For ``DataLoader(dataset, batch_sampler=...)``, with `PackedDataset.records` as the data set,
    which returns records as long as the plan counted them. For a plan with fragments, the numbers
    are those of fragments, as there.

    All ranks together get every row that has a batch exactly once per epoch, and equally many
    batches each. The batches that ranks get at the same time are a step. `len` is the number of
    batches of a whole epoch on this rank, the same in every epoch.

    An epoch that was read to its end is followed by the next one; an iteration that was left is
    started again (but the workers of a DataLoader may have read to its end). `set_epoch` chooses
    another epoch. Frameworks find it here and as ``sampler.set_epoch``.

    By default, the rank is found when the sampler is used: that of `torch.distributed`, if it is
    initialized; otherwise that of the variables RANK and WORLD_SIZE of the environment, if both are
    set. If ``accelerator.prepare`` of accelerate (which the Trainer of transformers calls as well)
    shares out batches itself, the sampler yields the batches of all ranks, step by step. With
    Lightning, use ``Trainer(use_distributed_sampler=False)``.

    `state_dict` and `load_state_dict` resume training within an epoch, on any number of ranks.

    Args:
        plan: The plan, or the path of its file.
        rank: The rank of this process; given together with `world_size`.
        world_size: The number of ranks.
        shuffle: Whether each epoch has another order of steps, whose batches are alike in cost (the
            sum of squared tokens of their sequences), and exchanges sequences with equally many
            tokens between batches (`PackingPlan.reshuffle`). If False, step s has the batches of
            the plan from ``s * world_size``, in every epoch.
        seed: From 0 to 2**64 - 1. Seed, epoch, plan and number of ranks determine the order, for
            a release of NumPy.
        even: Whether all ranks get equally many batches, as training with collectives requires. If
            the number of batches is not divisible by the number of ranks, the batches with the most
            sequences are halved until it is. If False, some ranks may get one batch more.
        drop_last: Whether to leave out the batches of an incomplete step instead of halving others:
            the last ones, or, with `shuffle`, random ones in each epoch.
        repack: With `shuffle`, pack each epoch anew, by First-Fit Decreasing in windows of this
            many sequences, drawn at random; so nearly no batch occurs in two epochs. All epochs
            have equally many batches; one that would have more, even when drawn again, is not
            packed anew, with a WARNING. Groups of the plan stay apart. A window of 10,000
            sequences is nearly as efficient as packing all together.

    Attributes:
        plan: The plan.
        epoch: The number of the epoch of the last or next iteration, from 0.

    Raises:
        ValueError: A parameter is out of range. When it is used: there are too few sequences for
            equally many batches per rank, or accelerate shares out batches although `rank` was
            given.
        TypeError: A parameter has the wrong type.

    Cost: with `shuffle`, one `PackingPlan.reshuffle` per epoch, O(n). With `repack`, all windows
    are packed in each epoch, and three times before the first, each taking some ten times as long
    as `GreedyPacker.pack_lengths`; memory for 32 bytes per sequence.

    Example:
        >>> from virnucpro.data import GreedyPacker, PackedBatchSampler
        >>> plan = GreedyPacker(100).pack_lengths([60, 60, 30, 30, 30])
        >>> list(PackedBatchSampler(plan))
        [[0, 2], [1, 3], [4]]
        >>> [list(PackedBatchSampler(plan, rank, world_size=2)) for rank in range(2)]
        [[[0], [1, 3]], [[2], [4]]]
    """

    def __init__(
        self,
        plan: PackingPlan | str | PathLike[str],
        rank: int | None = None,
        world_size: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        even: bool = True,
        *,
        drop_last: bool = False,
        repack: int | None = None,
    ) -> None:
        self.plan = as_plan(plan)
        self._given_rank = check_rank(rank, world_size)
        self.shuffle = check_bool(shuffle, "shuffle")
        self.seed = check_integer(seed, "seed", 0, 2**64 - 1)
        self.even = check_bool(even, "even")
        self.drop_last = check_bool(drop_last, "drop_last")
        if self.drop_last and not self.even:
            raise ValueError("drop_last=True needs even=True: all ranks get equally many batches")
        if repack is not None:
            repack = check_integer(repack, "repack", 1)
            if not shuffle:
                raise ValueError("repack needs shuffle=True")
        self.repack = repack
        self.epoch = 0
        # Numbers of ranks, and of batches that they have done together, in this epoch.
        self._done: list[tuple[int, int]] = []
        # Whether the next iteration continues after these batches.
        self._resumes = False
        # Whether the last iteration was read to its end.
        self._is_over = False
        # What to add to the epochs of `set_epoch`.
        self._epoch_offset = 0
        # Who takes batches before training asks for them.
        self._ahead: str | None = None
        self._read: tuple[int, Epoch] | None = None
        if self._given_rank is not None:
            self._count([(self._given_rank[1], 0)])

    @property
    def sampler(self) -> PackedBatchSampler:
        """The sampler itself, where accelerate and Lightning look for `set_epoch`."""
        return self

    @property
    def batch_sampler(self) -> PackedBatchSampler:
        """The sampler itself, where the Trainer of transformers looks for `set_epoch`."""
        return self

    @property
    def batch_size(self) -> NoReturn:
        """Not an attribute, since batches differ in size.

        Frameworks look for it when they share out the batches of a sampler, or replace it.

        Raises:
            ValueError: `rank` was given, so the batches would be shared out a second time.
        """
        if self._given_rank is not None and self._given_rank[1] > 1:
            raise ValueError(describe_second_sharing(*self._given_rank))
        raise AttributeError(f"{type(self).__name__} has no attribute 'batch_size'")

    @property
    def first_step(self) -> int:
        """Number of steps that the next iteration leaves out, since a loaded state has done them.

        For ``enumerate(loader, start=sampler.first_step)``. 0 if the state is that of another
        number of ranks, for which the rest of the epoch has new steps.
        """
        world_size = self._find_share(find_reader(self))[2]
        if self._resumes and self._done and self._done[-1][0] == world_size:
            return -(-self._done[-1][1] // world_size)
        return 0

    def __len__(self) -> int:
        first, stride, world_size = self._find_share(find_reader(self))
        return len(range(first, self._count([(world_size, 0)]), stride))

    def __iter__(self) -> Iterator[list[int]]:
        # All of this happens when the first batch is asked for: Lightning calls set_epoch between.
        reader = find_reader(self)
        first, stride, world_size = self._find_share(reader)
        # Before version 1.15, accelerate counts from 0 again after skip_first_batches.
        if reader.epoch or (reader.epoch == 0 and self._resumes):
            self.set_epoch(reader.epoch)
        if not self._resumes:
            if self._is_finished(first):
                self.epoch += 1
            self._done = []
        if not self._done or self._done[-1][0] != world_size:
            self._done.append((world_size, 0))
        self._resumes, self._is_over, self._ahead = False, False, reader.ahead
        done = self._done
        epoch = self._read_epoch(self.epoch)
        batches = self._deal(epoch.batches, self.epoch, done)
        for number in range(done[-1][1] + first, len(batches.begins), stride):
            # Not if another iteration has begun, or another epoch was set.
            if self._done is done:
                # All ranks together have done the batches before, and take those of this step.
                taken = min(number - first + stride, len(batches.begins))
                done[-1] = world_size, taken
            yield epoch.rows(int(batches.begins[number]), int(batches.ends[number])).tolist()
        self._is_over = self._done is done

    def _is_finished(self, first: int) -> bool:
        """Return whether a rank has taken all batches of this epoch; `first` is that of a step."""
        return bool(self._done) and self._done[-1][1] + first >= self._count(self._done)

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch, from 0.

        After `load_state_dict`, setting the epoch of the state keeps its position. A lower number
        means the epoch of the state, too, since some frameworks count epochs from 0 when they
        resume; later numbers are then counted from there. A higher one leaves out the rest of the
        epoch of the state, with a WARNING.

        Loaders of accelerate count epochs themselves: call ``loader.set_epoch`` instead.

        Raises:
            ValueError: The number is negative.
            TypeError: It is not an integer.
        """
        epoch = check_integer(epoch, "epoch", 0)
        if self._resumes:
            self._epoch_offset = max(0, self.epoch - epoch)
        epoch += self._epoch_offset
        first = self._find_share(find_reader(self))[0]
        if self._resumes and self._done and epoch != self.epoch:
            logger.warning(
                "the rest of epoch %d, of the state that was loaded, is left out, since epoch %d "
                "was set",
                self.epoch,
                epoch,
            )
        if epoch != self.epoch or (not self._resumes and self._is_finished(first)):
            self._done, self._resumes, self._is_over = [], False, False
        self.epoch = epoch

    def state_dict(self, step: int | None = None) -> dict[str, Any]:
        """Return the position in this epoch, for `load_state_dict` on any rank.

        The state is the same on all ranks, if they have done equally many steps.

        Args:
            step: Number of steps of the epoch that training has done, since it began or since the
                number of ranks last changed within it: batches of this rank. If None, the number
                taken from this sampler; after an epoch that was read to its end, the state is the
                start of the next one.

        Raises:
            ValueError: The epoch has fewer steps; or `step` is None, and a DataLoader with workers
                or accelerate takes batches before training asks for them. (A StatefulDataLoader of
                torchdata knows which, and keeps the state itself.)
        """
        epoch, done = self.epoch, list(self._done)
        if step is None and self._ahead and done:
            raise ValueError(
                f"{self._ahead} takes batches before training asks for them, so the sampler does "
                "not know how many training has done: pass state_dict(step=...)"
            )
        if step is None and self._is_over:
            epoch, done = epoch + 1, []
        if step is not None:
            ranks = self._find_share(find_reader(self))[2]
            if not done or (self._resumes and done[-1][0] != ranks):
                done.append((ranks, 0))
            ranks, number = done[-1][0], self._count(done)
            step = check_integer(step, "step", 0, -(-number // ranks))
            done[-1] = ranks, min(step * ranks, number)
        return {
            "version": STATE_VERSION,
            **self._parameters(),
            "epoch": epoch,
            "done": [list(pair) for pair in done],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state: the next iteration yields the rest of its epoch.

        On another number of ranks, these share out the batches that are left, in new steps: every
        row that is left exactly once.

        Raises:
            ValueError: The state has another version, or is for another plan or other parameters.
            TypeError: `state` is not a state.

        Example:
            >>> from virnucpro.data import GreedyPacker, PackedBatchSampler
            >>> plan = GreedyPacker(100).pack_lengths([60, 60, 30, 30, 30])
            >>> sampler = PackedBatchSampler(plan)
            >>> next(iter(sampler))
            [0, 2]
            >>> resumed = PackedBatchSampler(plan, rank=1, world_size=2)
            >>> resumed.load_state_dict(sampler.state_dict())
            >>> list(resumed)
            [[4]]
        """
        state = check_state(state, self._parameters())
        epoch = check_integer(state["epoch"], "epoch", 0)
        self._done = self._check_done(state["done"])
        self.epoch, self._resumes, self._epoch_offset = epoch, True, 0
        self._is_over, self._ahead = False, None

    def _check_done(self, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return the numbers of ranks and of batches done in a state."""
        for part, (ranks, number) in enumerate(pairs):
            most = self._count([*pairs[:part], (ranks, 0)])
            check_integer(number, "the number of batches done in the state", 0, most)
        # Ranks that have done nothing leave no trace.
        return pairs[:-1] if pairs and pairs[-1][1] == 0 else pairs

    @functools.cached_property
    def _num_batches(self) -> int:
        """Number of batches of each epoch, before they are split among ranks."""
        if self.repack is None:
            return len(self.plan)
        draws = (self._draw(0, number) for number in range(FIRST_DRAWS))
        return max(len(self.plan), *(len(draw.batches.begins) for draw in draws))

    def _count(self, done: list[tuple[int, int]]) -> int:
        """Return the number of batches, done or not, that the last number of ranks shares out."""
        number = left = self._num_batches
        for world_size, num_done in done:
            number = left
            if self.drop_last:
                number -= left % world_size
            elif self.even:
                number += -left % world_size
            left = number - num_done
        if len(done) == 1 and number > self.plan.num_sequences:
            raise ValueError(
                f"{self.plan.num_sequences:,} sequences in {self._num_batches:,} batches cannot "
                f"be split into {number:,}, equally many per rank; use even=False to keep them, or "
                "drop_last=True"
            )
        return number

    def _deal(self, batches: Batches, epoch: int, done: list[tuple[int, int]]) -> Batches:
        """Return the batches that the last number of ranks shares out, in order."""
        for part, (world_size, _) in enumerate(done):
            random = self._random(epoch, 1, part) if self.shuffle else None
            number = self._count(done[: part + 1])
            if part:
                batches = batches.take(slice(done[part - 1][1], None))
                batches = batches.take(np.argsort(batches.begins))
                num_left = int((batches.ends - batches.begins).sum())
                if number > num_left:
                    raise ValueError(
                        f"epoch {epoch} has {num_left:,} sequences left, too few for {world_size} "
                        f"ranks; resume on fewer ranks, or call set_epoch({epoch + 1}) to leave "
                        "them out"
                    )
            batches = deal(batches, world_size, number, random)
        return batches

    def _random(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))

    def _read_epoch(self, epoch: int) -> Epoch:
        """Return the batches of an epoch before they are split among ranks."""
        if self._read is None or (self.shuffle and self._read[0] != epoch):
            # The memory of the last epoch is not needed any more.
            self._read = None
            self._read = epoch, self._make_epoch(epoch)
        return self._read[1]

    def _make_epoch(self, epoch: int) -> Epoch:
        plan = self.plan
        for number in range(MAX_DRAWS if self.repack else 0):
            drawn = self._draw(epoch, number)
            if len(drawn.batches.begins) <= self._num_batches:
                return drawn
        if self.repack:
            logger.warning(
                "epoch %d is not packed anew: it would have more than %s batches",
                epoch,
                f"{self._num_batches:,}",
            )
        indices, costs = None, np.zeros(len(plan))
        if self.shuffle:
            seed = int(self._random(epoch, 0).integers(2**64, dtype=np.uint64))
            indices, costs = plan.reshuffle(seed).indices, self._costs
        return Epoch(plan, indices, Batches(plan.offsets[:-1], plan.offsets[1:], costs))

    def _draw(self, epoch: int, number: int) -> Epoch:
        """Pack an epoch anew."""
        assert self.repack is not None
        return pack_windows(self.plan, self.repack, self._random(epoch, 0, number))

    @functools.cached_property
    def _costs(self) -> NDArray[np.float64]:
        return batch_costs(self.plan)

    @functools.cached_property
    def _rows_crc32(self) -> int:
        """The checksum that identifies the plan in states."""
        crc32 = 0
        for begin in range(0, self.plan.num_sequences, CHUNK):
            # In pieces, since a plan that is in a file need not be read into memory.
            crc32 = zlib.crc32(plain(self.plan.slice_indices(begin, begin + CHUNK)).data, crc32)
        groups = () if self.plan.group_offsets is None else (self.plan.group_offsets,)
        for values in (self.plan.offsets, *(self.plan.fragments or ()), *groups):
            crc32 = zlib.crc32(plain(values).data, crc32)
        return crc32

    def _parameters(self) -> dict[str, Any]:
        """Return the values that determine the batches of each epoch."""
        return {
            "num_sequences": self.plan.num_sequences,
            "num_batches": self.plan.num_batches,
            "rows_crc32": self._rows_crc32,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "even": self.even,
            "drop_last": self.drop_last,
            "repack": self.repack,
        }

    def _find_share(self, reader: Reader) -> tuple[int, int, int]:
        """Return the first batch of this sampler, the distance to the next, and the ranks."""
        if reader.num_processes > 1:
            if self._given_rank is not None and self._given_rank[1] > 1:
                raise ValueError(describe_second_sharing(*self._given_rank))
            if reader.repeats and not self.even:
                raise ValueError(
                    "accelerate would repeat batches of this sampler, which has even=False: use "
                    "even=True, or DataLoaderConfiguration(even_batches=False) of accelerate"
                )
            return 0, 1, reader.num_processes
        rank, world_size = self._given_rank or find_rank()
        return rank, world_size, world_size
