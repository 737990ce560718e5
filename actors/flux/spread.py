"""What sequence ranks tell each other: each holds some of an image's tokens, and all of the weights.

Within a ring's member, Ulysses trades tokens for heads; around the ring, keys and values travel.

B batch, L tokens, T text tokens, C channels, H heads, D head size, S sequence ranks.
"""

from collections.abc import Sequence
from functools import cache

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from actors.flux.blocks import Attend, Qkv
from actors.flux.exchange import Seat
from actors.flux.model import Flux
from actors.flux.rope import Rotation, rotate
from actors.flux.sharding import share


class Trade(Attend):
    """Attention over all tokens, of which this rank holds some. One object serves every block of a network."""

    def __init__(self, seat: Seat) -> None:
        super().__init__()
        self.seat = seat
        self.kept: list[Tensor] = []  # by place in the ring: which of its gathered tokens are real

    def lay_out(self, tokens: Sequence[int], device: torch.device) -> None:
        """Streams of so many tokens are coming, each cut into the ranks' shares and padded."""
        shape, everyone = self.seat.shape, self.seat.sequence.degree
        self.kept = []
        for ring in range(shape.rings):
            real: list[int] = []
            at = 0
            for rank in range(ring * shape.ulysses, (ring + 1) * shape.ulysses):
                for count in tokens:
                    real += range(at, at + share(count, rank, everyone)[1])
                    at += share(count, 0, everyone)[1]
            self.kept.append(torch.tensor(real, dtype=torch.long, device=device))

    def forward(self, qkv: Qkv, turn: Rotation) -> Tensor:
        own = torch.stack((rotate(qkv.q_BHLD, turn), rotate(qkv.k_BHLD, turn), qkv.v_BHLD))
        q, k, v = self.traded(own, given=2, got=3)  # all heads of some tokens for some heads of more
        ring = self.seat.sequence.rank // self.seat.shape.ulysses
        out = torch.zeros_like(q)
        mine = self.kept[ring]
        out[:, :, mine] = self.around(q[:, :, mine], torch.stack((k, v)), ring)
        return self.traded(out, given=2, got=1).transpose(1, 2).flatten(2)

    def traded(self, x: Tensor, given: int, got: int) -> Tensor:
        """Each Ulysses rank gives the others their part along one dimension and gets theirs along another."""
        group = self.seat.ulysses_group
        if group is None:
            return x
        sent = torch.stack(x.chunk(group.size(), dim=given))
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=group)
        return torch.cat(received.unbind(0), dim=got)

    def around(self, q_BHLD: Tensor, kv: Tensor, ring: int) -> Tensor:
        """Keys and values of one member after the other, the next ones on their way while these are used."""
        rings, group = self.seat.shape.rings, self.seat.ring_group
        total, weight = None, None
        for step in range(rings):
            arriving = Arriving(kv, group) if group is not None and step + 1 < rings else None
            real = self.kept[(ring - step) % rings]
            if len(real) and q_BHLD.shape[2]:
                part, log_weight = attention(q_BHLD, kv[0][:, :, real], kv[1][:, :, real])
                total, weight = merged(total, weight, part, log_weight)
            kv = arriving.wait() if arriving is not None else kv
        return q_BHLD if total is None else total.to(q_BHLD)


class Arriving:
    """What the ring's previous member sends, while ours goes to the next."""

    def __init__(self, sent: Tensor, group: ProcessGroup) -> None:
        ranks, me = dist.get_process_group_ranks(group), dist.get_rank(group)
        self.sent, self.got = sent.contiguous(), torch.empty_like(sent)
        self.works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, self.sent, ranks[(me + 1) % len(ranks)], group),
                dist.P2POp(dist.irecv, self.got, ranks[(me - 1) % len(ranks)], group),
            ]
        )

    def wait(self) -> Tensor:
        for work in self.works:
            work.wait()
        return self.got


def attention(q_BHLD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor) -> tuple[Tensor, Tensor]:
    """The attention to some of the keys, and the logarithm of the weight they had."""
    if q_BHLD.is_cuda and q_BHLD.dtype in (torch.bfloat16, torch.float16) and has_flash(q_BHLD.device):
        out, log_weight = torch.ops.aten._scaled_dot_product_flash_attention(q_BHLD, k_BHLD, v_BHLD)[:2]
        return out, log_weight
    if q_BHLD.device.type == "cpu":
        out, log_weight = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q_BHLD, k_BHLD, v_BHLD)
        return out, log_weight
    return in_floats(q_BHLD, k_BHLD, v_BHLD)


@cache
def has_flash(device: torch.device) -> bool:
    """Its kernels are for GPUs from Ampere on."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def in_floats(q_BHLD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor) -> tuple[Tensor, Tensor]:
    scores = q_BHLD.float() @ k_BHLD.float().transpose(-1, -2) * q_BHLD.shape[-1] ** -0.5
    log_weight = scores.logsumexp(-1)
    return ((scores - log_weight[..., None]).exp() @ v_BHLD.float()).to(v_BHLD), log_weight


def merged(total: Tensor | None, weight: Tensor | None, part: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Two attentions over different keys as the one over both."""
    if total is None or weight is None:
        return part.float(), log_weight
    both = torch.logaddexp(weight, log_weight)
    old, new = (weight - both).exp()[..., None], (log_weight - both).exp()[..., None]
    return total * old + part.float() * new, both


class Spread(nn.Module):
    """The transformer over sequence ranks, called as the ordinary one is: each computes its share of the tokens."""

    def __init__(self, flux: Flux, seat: Seat) -> None:
        super().__init__()
        self.flux, self.config, self.seat = flux, flux.config, seat
        self.trade = Trade(seat)
        for block in (*flux.double_blocks, *flux.single_blocks):
            block.attend = self.trade

    def forward(
        self,
        img_BLC: Tensor,
        img_ids_BL3: Tensor,
        txt_BTD: Tensor,
        txt_ids_BT3: Tensor,
        timesteps_B: Tensor,
        y_BV: Tensor,
        guidance_B: Tensor | None,
    ) -> Tensor:
        self.trade.lay_out((txt_BTD.shape[1], img_BLC.shape[1]), img_BLC.device)
        img, img_ids, txt, txt_ids = map(self.own, (img_BLC, img_ids_BL3, txt_BTD, txt_ids_BT3))
        velocity = self.flux(img, img_ids, txt, txt_ids, timesteps_B, y_BV, guidance_B).contiguous()
        parts = [torch.empty_like(velocity) for _ in range(self.seat.sequence.degree)]
        dist.all_gather(parts, velocity, group=self.seat.sequence_group)
        return torch.cat(parts, dim=1)[:, : img_BLC.shape[1]]

    def own(self, x_BLC: Tensor) -> Tensor:
        place = self.seat.sequence
        start, real = share(x_BLC.shape[1], place.rank, place.degree)
        room = share(x_BLC.shape[1], 0, place.degree)[1]
        return F.pad(x_BLC[:, start : start + real], (0, 0, 0, room - real))
