"""Requests -> latents: what a pipeline does between prompts and pixels.

Axes: latents are [C,f,h,w], normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..diffusion.guidance import reconstruction_guided
from ..diffusion.inversion import ITERATIONS, invert
from ..diffusion.solvers import Predict, solve
from ..errors import UserError
from ..limits import check
from ..models.conditions import Conditions
from ..models.key_value_cache import KeyValueCache
from ..packing import unpatchify
from .controls import branches_of, signals_of
from .convention import step_ender
from .limit import check_cost
from .low import with_low
from .predict import SecondExpert, make_predict, record
from .references import shown_to
from .sampling import Batch, Request, Sampling, told_motion


class SampleMixin:
    """Sampling, inversion, and what a causal model remembers."""

    @torch.no_grad()
    def sample(
        self, requests: Sequence[Request], sampling: Sampling | None = None, cache: KeyValueCache | None = None
    ) -> list[Tensor]:
        """Normalised latents [C,f,h,w] of the requests, sampled as one pack. Raises UserError.

        cache: of a causal model; the requests are of the frames that follow those in it (`remember`).
        """
        sampling = sampling or Sampling()
        if cache is None:
            self._interrupt = False
        if cache is None and self.student is not None and self.student.rollout is not None and requests:
            return self._in_turn(requests, sampling, self.student.rollout)
        with self._autocast(sampling.precision):
            batch, predict = self._prepare(requests, sampling, cache)
            ender = sampling.on_step_end
            z = solve(
                self.scheduler,
                predict,
                batch.z,
                batch.levels,
                batch.layout,
                solver=sampling.solver or self.solver,
                noise=batch.noise,
                after=lambda z, t: batch.put_back(self.scheduler, z, t),
                on_step=None if ender is None else step_ender(self, ender, batch, self.transformer.patch),
                progress=self.progress_bar,
            )
        return unpatchify(batch.finished(z), batch.layout, self.transformer.patch, [r.grid[0] for r in requests])

    @torch.no_grad()
    def invert(
        self,
        latents: Sequence[Tensor],
        requests: Sequence[Request],
        sampling: Sampling | None = None,
        iterations: int = ITERATIONS,
    ) -> list[Tensor]:
        """Normalised latents [C,f,h,w] at each request's `level`, its `start`, from which solver "euler" samples the
        ones given here again (`diffusion.inversion`). Latent frames that are given stay. Raises UserError.
        """
        sampling = sampling or Sampling()
        if (solver := sampling.solver or self.solver) != "euler":
            raise UserError(f"inversion is that of solver 'euler', not {solver!r}: invert and sample with it")
        started = [replace(r, start=z) for r, z in zip(requests, latents, strict=True)]
        with self._autocast(sampling.precision):
            batch, predict = self._prepare(started, sampling)
            if batch.any_known:
                raise UserError(
                    "inversion takes whole latent frames as given, by noise levels, and no other known part"
                )
            found = invert(
                self.scheduler,
                predict,
                batch.z,  # `start` is put in as it is
                batch.levels,
                batch.layout,
                iterations=iterations,
                progress=self.progress_bar,
            )
        return unpatchify(found.z, batch.layout, self.transformer.patch, [r.grid[0] for r in requests])

    @torch.no_grad()
    def remember(
        self, latents: Sequence[Tensor], requests: Sequence[Request], sampling: Sampling, cache: KeyValueCache
    ) -> None:
        """Adds finished latents [C,f,h,w] of the requests to the cache of a causal model, for the frames after them."""
        with self._autocast(sampling.precision):
            latents = [z.to(self._execution_device) for z in latents]
            requests = self._complete(requests, sampling)
            given = Conditions(motion=told_motion(requests))
            guidance, given = self._by_passes(self.guided(sampling), given, len(requests))
            record(self.transformer, self.reader, requests, latents, guidance, cache, given, self.scheduler)

    def _prepare(
        self, requests: Sequence[Request], sampling: Sampling, cache: KeyValueCache | None = None
    ) -> tuple[Batch, Predict]:
        """The pack of the requests, and what predicts for it. Raises UserError."""
        steps = self.config.steps if sampling.steps is None else sampling.steps
        guidance, second = self.guided(sampling), self._second(sampling)
        check("steps", steps)
        self.check_sampling(sampling)
        check("reconstruction_weight", sampling.reconstruction_weight)
        if not requests:
            raise UserError("0 prompts: at least one is needed")
        requests = self._complete(requests, sampling)
        if self.student is not None:
            self.student.check_requests(requests)
        self.reader.check(text for request in requests for text in (request.prompt, request.negative_prompt))
        shown = shown_to(requests, self, sampling.reference_noise)
        if cache is not None and (shown or any(map(len, map(branches_of, self.experts)))):
            raise UserError(
                "a rollout with a cache has no place for references and ControlNets: leave them out, or sample whole "
                "clips"
            )
        check_cost(self, [request.grid for request in requests], sampling.large, shown)
        condition = self._condition(sampling)
        if cache is not None and self.channel_kind != "none":
            raise UserError("a rollout with a cache is of models that are told what is known by noise levels alone")
        scheduler = self.scheduler
        batch = Batch.of(
            requests,
            scheduler,
            self.transformer.patch,
            self.transformer.latent_channels,
            steps,
            condition == "levels",
            self._execution_device,
            None if cache is None else [len(held) for held in cache.frames[: len(requests)]],
            shown,
            ("known" if condition == "channels" else "nothing") if self.told else "",
            self.noise_of_given(sampling, condition, cache is not None),
        )
        batch.given = with_low(requests, self, batch, sampling.reference_noise)
        guidance, batch.given = self._by_passes(guidance, batch.given, len(requests))
        batch.given = self._tell(batch.given, len(requests), sampling)
        batch.signals = signals_of(requests, self, batch)
        predict = make_predict(self.transformer, self.reader, batch, guidance, scheduler, cache, second)
        if condition == "reconstruction" and batch.any_known:
            predict = reconstruction_guided(
                predict, scheduler, batch.layout, batch.known, batch.clean, sampling.reconstruction_weight
            )
        self.set_progress_bar_config(disable=not sampling.progress, desc="sampling")
        return batch, predict

    def _second(self, sampling: Sampling) -> SecondExpert | None:
        """Who predicts at low noise levels, where it is another network. Raises UserError."""
        if sampling.guidance_low is not None:
            raise UserError("guidance_low is of a second expert: this model is one network; leave it out")
        return None

    def _tell(self, given: Conditions, samples: int, sampling: Sampling) -> Conditions:
        """With what the model is told of the sampling. Raises UserError."""
        if sampling.guidance_embedded is not None:
            raise UserError("guidance_embedded: this model has no guidance embedding; use guidance")
        return given
