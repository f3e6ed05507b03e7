"""Weights sharded over processes: FSDP2 for forward and backward, Muon whole, checkpoints by shard.

PyTorch does the sharding (`fully_shard`), the collectives and the shard files (Distributed Checkpoint through its
safetensors storage, written while training goes on). Ours is Muon: orthogonalising a shard is not the shard of the
orthogonalised matrix, so each matrix is gathered to one owner, orthogonalised whole, and scattered back, all of them
in one exchange each way. It answers to the calls of `Stepper`.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from glassformer.errors import CheckpointError, TrainError
from glassformer.model import Config, Transformer
from glassformer.system import files, hardware
from glassformer.train import checkpoint, compiling
from glassformer.train.balance import balance_of
from glassformer.train.optimizer import adamw, apply_update, muon_direction, orthogonalise, set_rates, shape_scale
from glassformer.train.processes import Processes
from glassformer.train.recipe import Recipe
from glassformer.train.torch_stepper import Objective, muon_dtype, recomputing
from glassformer.train.weights import by_shape, component, kind_of


def shard_rows(rows: int, rank: int, world: int) -> int:
    """Rows of a matrix that lie on `rank` when its rows are sharded over `world` (FSDP2's layout)."""
    each = -(-rows // world)
    return max(0, min(each, rows - rank * each))


class ShardedMuon:
    """Muon over matrices, and stacks of experts' matrices, that are spread over the processes.

    Args:
        parameters: every matrix by name, sharded on its first axis.
        ranks: the processes.
        dtype: of the Newton–Schulz products.
    """

    def __init__(self, parameters: Mapping[str, DTensor], ranks: Processes, dtype: torch.dtype) -> None:
        self.parameters, self.ranks, self.dtype = dict(parameters), ranks, dtype
        self.buffers = {name: torch.zeros_like(p.to_local()) for name, p in self.parameters.items()}
        # the largest first, each to whoever has least to do
        self.owners: dict[int, list[str]] = {rank: [] for rank in range(ranks.world)}
        load = [0] * ranks.world
        for name, p in sorted(self.parameters.items(), key=lambda item: (-item[1].numel(), item[0])):
            owner = load.index(min(load))
            self.owners[owner].append(name)
            load[owner] += p.numel() * min(p.shape[-2:])

    @torch.no_grad()
    def step(self, lr: float, momentum: float, rounds: int, decay: float, cautious: bool) -> None:
        """One step of every matrix."""
        if not self.parameters:
            return
        world, rank = self.ranks.world, self.ranks.rank
        directions = {
            name: muon_direction(_local_grad(p), self.buffers[name], momentum) for name, p in self.parameters.items()
        }
        mine = self.owners[rank]
        send = [sum(directions[name].numel() for name in self.owners[r]) for r in range(world)]
        receive = [sum(math.prod(self._held(name, r)) for name in mine) for r in range(world)]
        outgoing = torch.cat([directions[name].reshape(-1) for r in range(world) for name in self.owners[r]])
        arrived = torch.empty(sum(receive), dtype=outgoing.dtype, device=outgoing.device)
        dist.all_to_all_single(arrived, outgoing, receive, send)
        whole = self._orthogonal(self._join(arrived, receive))
        back = torch.cat([piece.reshape(-1) for r in range(world) for piece in self._cut(whole, r)] or [outgoing[:0]])
        returned = torch.empty_like(outgoing)
        dist.all_to_all_single(returned, back.to(outgoing.dtype), send, receive)
        at = 0
        for r in range(world):
            for name in self.owners[r]:
                value = self.parameters[name].to_local()
                update = returned[at : at + value.numel()].view_as(value)
                at += value.numel()
                apply_update(value, update, lr, decay, cautious, shape_scale(*self.parameters[name].shape[-2:]))

    def _held(self, name: str, rank: int) -> tuple[int, ...]:
        """The shape of what a process holds of a matrix."""
        first, *rest = self.parameters[name].shape
        return shard_rows(first, rank, self.ranks.world), *rest

    def _join(self, arrived: Tensor, receive: list[int]) -> dict[str, Tensor]:
        """My matrices, whole, from every process's rows of them."""
        pieces: dict[str, list[Tensor]] = {name: [] for name in self.owners[self.ranks.rank]}
        for r, part in enumerate(arrived.split(receive)):
            at = 0
            for name, into in pieces.items():
                shape = self._held(name, r)
                into.append(part[at : at + math.prod(shape)].view(shape))
                at += math.prod(shape)
        return {name: torch.cat(rows) for name, rows in pieces.items()}

    def _orthogonal(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        done: dict[str, Tensor] = {}
        for group in by_shape(whole.items()).values():
            stack = orthogonalise(torch.stack([matrix for _, matrix in group]), self.rounds, self.dtype)
            done.update({name: stack[i] for i, (name, _) in enumerate(group)})
        return {name: done[name] for name in whole}

    rounds = 5

    def _cut(self, whole: Mapping[str, Tensor], rank: int) -> list[Tensor]:
        """What `rank` gets back of my matrices."""
        pieces = []
        for matrix in whole.values():
            each = -(-matrix.shape[0] // self.ranks.world)
            pieces.append(matrix[rank * each : (rank + 1) * each])
        return pieces


class ShardedStepper:
    """The model's weights, gradients and optimiser state, spread over all processes.

    Args:
        transformer: float32 weights, the same on every process; sharded in place.
        recipe: the run.
        compute: the dtype of forward and backward; gradients are summed in float32.
        ranks: the processes.
    """

    name = "torch"
    sharded = True

    def __init__(
        self,
        transformer: Transformer,
        recipe: Recipe,
        compute: torch.dtype,
        ranks: Processes,
        run_block: Callable[..., Tensor] | None = None,
    ) -> None:
        self.transformer, self.recipe, self.ranks, self.compute = transformer, recipe, ranks, compute
        transformer.requires_grad_(True)
        self.device = device = transformer.device
        self.mesh = init_device_mesh(device.type, (ranks.world,))
        # inputs are ids, and all that follows has the parameters' dtype: casting would only hand each block a copy of
        # what blocks pass on to each other
        policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
        shard = functools.partial(fully_shard, mesh=self.mesh, mp_policy=policy, reshard_after_forward=True)
        for block in transformer.blocks:
            shard(block)
        self.balance = balance_of(transformer.config, recipe.optimizer.balance)
        if self.balance is not None and ranks.world > 1:
            self.balance.reduce = ranks.reduce
        self.objective = Objective(
            transformer,
            recipe.loop.loss_chunk,
            recomputing if recipe.loop.recompute else run_block,
            balance=self.balance,
        )
        shard(self.objective)
        self.compiled = run_block is not None and compiling.is_compiled(run_block)
        named: dict[str, Any] = dict(transformer.named_parameters())
        self.named: dict[str, DTensor] = named
        tied = transformer.config.tied
        kinds = {name: kind_of(name, p.shape, tied=tied) for name, p in named.items()}
        muon = {name: p for name, p in named.items() if kinds[name] == "matrix" and recipe.optimizer.kind == "muon"}
        self.muon = ShardedMuon(muon, ranks, muon_dtype(compute))
        self.muon.rounds = recipe.optimizer.newton_schulz
        self.rest = {name: p for name, p in named.items() if name not in muon}
        # a process may hold no rows of a small tensor; the optimiser is not shown those
        self.locals = {name: p.to_local().detach() for name, p in self.rest.items()}
        held = [name for name, local in self.locals.items() if local.numel()]
        self.held = held
        self.adamw = adamw([(kinds[name], self.locals[name]) for name in held], recipe.optimizer)
        self.background = dist.new_group(backend="gloo")
        self._pending: tuple[Any, Path, Path, dict[str, Any], Callable[[Path], None]] | None = None

    @property
    def config(self) -> Config:
        """The model's design."""
        return self.transformer.config

    def zero(self) -> None:
        """Begin a step."""
        for p in self.named.values():
            p.grad = None
        if self.balance is not None:
            self.balance.begin()

    @property
    def packs(self) -> bool:
        """Whether a row of several documents is taken; see `Stepper`."""
        return self.config.packs and not self.compiled

    def accumulate(self, tokens: Tensor, targets: Tensor, scale: float, lengths: Sequence[int] | None = None) -> Tensor:
        """Forward and backward of some rows; see `Stepper`."""
        loss: Tensor = self.objective(tokens, targets, lengths)
        # FSDP averages over processes; the scale is of the global batch, so a sum is wanted
        loss.backward(torch.full_like(loss, scale * self.ranks.world))
        return loss.detach()

    @torch.no_grad()
    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The summed loss of some rows; see `Stepper`."""
        found: Tensor = (self.objective if self.compute == torch.float32 else self._exact_objective)(tokens, targets)
        return found

    @functools.cached_property
    def _exact_objective(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss by the float32 weights: those of one block at a time are gathered, and those outside blocks."""
        model = Transformer.empty(self.config)
        numbers = {id(block): i for i, block in enumerate(model.blocks)}

        @contextlib.contextmanager
        def gathered(wanted: Callable[[str], bool]) -> Iterator[None]:
            names = [name for name in self.named if wanted(name)]
            nothing = {name: model.get_parameter(name) for name in names}
            try:
                for name in names:
                    _assign(model, name, nn.Parameter(self.named[name].full_tensor(), requires_grad=False))
                yield
            finally:
                for name, parameter in nothing.items():
                    _assign(model, name, parameter)

        def run_block(block: nn.Module, *given: object) -> Tensor:
            with gathered(lambda name: name.startswith(f"blocks.{numbers[id(block)]}.")):
                out: Tensor = block(*given)
                return out

        objective = Objective(model, self.recipe.loop.loss_chunk, run_block)

        def loss(tokens: Tensor, targets: Tensor) -> Tensor:
            with gathered(lambda name: not name.startswith("blocks.")):
                return objective(tokens, targets)

        return loss

    @torch.no_grad()
    def finish(self) -> float:
        """The norm of the gradients, which the backward pass has already summed; clips them if asked to."""
        squares = sum(float(_local_grad(p).square().sum()) for p in self.named.values())
        norm = self.ranks.sum(squares) ** 0.5
        clip = self.recipe.optimizer.clip
        if clip and norm > clip:
            for p in self.named.values():
                _local_grad(p).mul_(clip / norm)
        return norm

    @torch.no_grad()
    def step(self, rate: float, momentum: float) -> None:
        """The optimiser's step."""
        spec = self.recipe.optimizer
        set_rates(self.adamw, rate)
        for name in self.held:
            self.locals[name].grad = _local_grad(self.rest[name])
        self.adamw.step()
        self.muon.step(spec.muon_lr * rate, momentum, spec.newton_schulz, spec.muon_decay, spec.cautious)

    def whole(self) -> dict[str, Tensor]:
        """The float32 weights by name, gathered into the first process's main memory; nothing on the others."""
        return self._gathered(torch.float32)

    def visible(self) -> Transformer | None:
        """The model as it stands, unsharded, in the dtype it computes with; None on all but the first process.

        Every process has to call this. The copy lies where the model is trained if it takes at most half of the
        memory that is free there, else in main memory.
        """
        whole = self._gathered(self.compute)
        if self.ranks.rank:
            return None
        copied = Transformer.empty(self.config).load(whole)
        fits = 2 * sum(tensor.nbytes for tensor in whole.values()) <= hardware.free_memory(self.device)
        return copied.to(self.device) if fits else copied

    @torch.no_grad()
    def _gathered(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The weights by name in the first process's main memory, one after the other through the devices."""
        found = {}
        for name, p in self.named.items():
            full = p.full_tensor()
            if self.ranks.rank == 0:
                found[name] = full.to("cpu", dtype)
        return found

    @torch.no_grad()
    def whole_grads(self) -> dict[str, Tensor]:
        """The float32 gradients by name, gathered."""
        return {name: p.grad.full_tensor().cpu() for name, p in self.named.items() if isinstance(p.grad, DTensor)}

    def norms(self) -> tuple[dict[str, float], dict[str, float]]:
        """Norms of weights and gradients of each component."""
        keys = sorted({component(name) for name in self.named})
        box = torch.zeros(2, len(keys), dtype=torch.float64, device=self.ranks.device)
        for name, p in self.named.items():
            column = keys.index(component(name))
            box[0, column] += p.to_local().square().sum().to(box)
            box[1, column] += _local_grad(p).square().sum().to(box)
        self.ranks.reduce(box)
        weights, grads = box.sqrt().tolist()
        return dict(zip(keys, weights, strict=True)), dict(zip(keys, grads, strict=True))

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs that is a tensor, sharded; named as `LocalStepper.state` names it."""
        found: dict[str, Tensor] = {f"model.{name}": p.detach() for name, p in self.named.items()}
        for name, buffer in self.muon.buffers.items():
            found[f"muon.momentum.{name}"] = self._like(buffer, self.named[name])
        for name, local in self.locals.items():
            state = self.adamw.state.get(local, {})
            for key in ("exp_avg", "exp_avg_sq"):
                found[f"adamw.{key}.{name}"] = self._like(state.get(key, torch.zeros_like(local)), self.named[name])
        return found

    def _like(self, local: Tensor, parameter: DTensor) -> DTensor:
        return DTensor.from_local(
            local, self.mesh, [Shard(0)], run_check=False, shape=parameter.shape, stride=parameter.stride()
        )

    def save(self, folder: Path, step: int, state: Mapping[str, Any], beside: Callable[[Path], None]) -> None:
        """Begin a checkpoint: shards are copied now and written while training goes on; `settle` completes it."""
        import torch.distributed.checkpoint as dcp

        self.settle(wait=True)
        target = folder / checkpoint.folder_name(step)
        draft = folder / f".{target.name}-draft"  # the same name on every process
        if self.ranks.rank == 0:
            with checkpoint.not_written(folder, step):
                files.remove(draft)
                draft.mkdir(parents=True)
        self.ranks.wait()
        writer = dcp.HuggingFaceStorageWriter(str(draft), save_distributed=True)
        future = dcp.async_save(self.state(), storage_writer=writer, process_group=self.background)
        self._pending = (future, draft, target, {**state, "step": step}, beside)

    def settle(self, wait: bool = False) -> bool:
        """Complete the checkpoint under way if every process has written its shards; see `Stepper`."""
        if self._pending is None:
            return False
        future, draft, target, state, beside = self._pending
        if not wait and self.ranks.any(not future.done()):
            return False
        failure = ""
        try:
            future.result()
        except Exception as error:  # whatever the writer's thread met
            failure = str(error).splitlines()[0]
        self._pending = None
        if self.ranks.any(bool(failure)):
            raise TrainError(f"The checkpoint of step {state['step']} could not be written: {failure or 'elsewhere'}.")
        if self.ranks.rank == 0:

            def fill(place: Path) -> None:
                for file in draft.iterdir():
                    file.rename(place / file.name)
                beside(place)

            checkpoint.write(target.parent, int(state["step"]), state, fill)
            files.remove(draft)
        self.ranks.wait()
        return True

    def restore(self, saved: checkpoint.Saved) -> None:
        """Continue from a checkpoint, whatever number of processes wrote it.

        Raises:
            CheckpointError: when it is of another model.
        """
        import torch.distributed.checkpoint as dcp

        for local in (self.locals[name] for name in self.held):
            self.adamw.state[local] = {
                "step": torch.tensor(float(saved.state["updates"]), dtype=torch.float32, device=local.device),
                "exp_avg": torch.zeros_like(local),
                "exp_avg_sq": torch.zeros_like(local),
            }
        try:
            dcp.load(self.state(), storage_reader=dcp.HuggingFaceStorageReader(str(saved.path)))
        except (KeyError, ValueError, RuntimeError, dcp.api.CheckpointException) as error:
            raise CheckpointError(
                f"Checkpoint {saved.path} is of another model ({str(error).strip()[:200]})."
            ) from None


def _local_grad(parameter: DTensor) -> Tensor:
    """This process's rows of a gradient; zeros where nothing flowed."""
    grad = parameter.grad
    return torch.zeros_like(parameter.to_local()) if grad is None else grad.to_local()  # type: ignore[attr-defined]


def _assign(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, parameter)
