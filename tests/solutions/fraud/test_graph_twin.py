"""The network's reading of mailboxes against PyG: the same attention as message passing from mails to read-outs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import softmax

from core.fusion import Fuser
from solutions.fraud.engine import Engine, encode_labels, encode_payments
from solutions.fraud.graph_state import ROLES
from solutions.fraud.network import NetworkSettings, TemporalGraphNetwork
from solutions.fraud.prior import Prior
from solutions.fraud.tokens import TOKEN
from tests.solutions.fraud.streams import ENGINE, random_stream


class MailboxConv(MessagePassing):
    """One bipartite graph: an edge from every real mail (of any role) to every read-out of its payment."""

    def __init__(self, fuser: Fuser) -> None:
        super().__init__(aggr="add", node_dim=0)
        self.fuser = fuser

    def forward(self, tokens: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        fuser = self.fuser
        half, heads, size = fuser.width // 2, fuser.heads, fuser.width // fuser.heads
        keys, values, payment, role = [], [], [], []
        for m, name in enumerate(fuser.names):
            mail_ND = tokens[name][masks[name]]
            shared_ND, private_ND = fuser.shared(fuser.adapt[name](mail_ND)), fuser.private[name](mail_ND)
            keys.append(torch.cat([shared_ND[:, :half], private_ND[:, :half]], 1))
            values.append(torch.cat([shared_ND[:, half:], private_ND[:, half:]], 1))
            payment.append(masks[name].nonzero()[:, 0])
            role.append(torch.full((len(mail_ND),), m))
        key_ND, value_ND = torch.cat(keys), torch.cat(values)
        payment_N, role_N = torch.cat(payment), torch.cat(role)
        batch = len(masks[fuser.names[0]])
        route_BM = self.route(value_ND, payment_N, role_N, batch)
        source = torch.arange(len(key_ND)).repeat_interleave(fuser.read_outs)
        target = (payment_N[:, None] * fuser.read_outs + torch.arange(fuser.read_outs)).flatten()
        read = self.propagate(
            torch.stack([source, target]),
            key=key_ND.view(-1, heads, size),
            value=value_ND.view(-1, heads, size),
            query=fuser.query_SD.repeat(batch, 1).view(-1, heads, size),
            weight=route_BM[payment_N, role_N],
            size=(len(key_ND), batch * fuser.read_outs),
        )
        return fuser.out(read.flatten(1)).view(batch, fuser.read_outs, -1) + fuser.query_SD

    def message(
        self, key_j: Tensor, value_j: Tensor, query_i: Tensor, weight_j: Tensor, index: Tensor, size_i: int
    ) -> Tensor:
        score = (key_j * query_i).sum(-1) * key_j.shape[-1] ** -0.5
        return softmax(score, index, num_nodes=size_i).unsqueeze(-1) * value_j * weight_j[:, None, None]

    def route(self, value_ND: Tensor, payment_N: Tensor, role_N: Tensor, batch: int) -> Tensor:
        """(B, M): the gate's softmax over the roles that have mails, from the mean value of each."""
        modalities = len(self.fuser.names)
        weights = []
        for b in range(batch):
            means, here = [], []
            for m in range(modalities):
                chosen = value_ND[(payment_N == b) & (role_N == m)]
                here.append(len(chosen) > 0)
                means.append(chosen.mean(0) if here[-1] else value_ND.new_zeros(self.fuser.width))
            score = self.fuser.gate(torch.cat(means)).masked_fill(~torch.tensor(here), -torch.inf)
            weights.append(score.softmax(0) * sum(here))
        return torch.stack(weights)


@pytest.fixture(scope="module")
def mailboxes() -> dict[str, tuple[Tensor, Tensor]]:
    """Mailboxes of the last payments of a stream, some without a device or without any history."""
    frame = random_stream(600)
    events = encode_payments(frame, ENGINE)
    tokens_for = np.zeros(len(frame), bool)
    tokens_for[[0, 1, 2, *range(560, 600)]] = True
    observed = Engine(ENGINE).observe(events, encode_labels(frame, events.key_TE[:, 0]), tokens_for=tokens_for)
    return {role: (torch.from_numpy(t), torch.from_numpy(m)) for role, (t, m) in observed.modalities().items()}


def test_the_fuser_is_message_passing_from_mails(mailboxes: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Values and gradients, on a real bipartite graph with empty mailboxes in it."""
    torch.manual_seed(0)
    network = TemporalGraphNetwork(NetworkSettings(), Prior(0.0, 0.0, 0.0))
    torch.nn.init.normal_(network.fuser.gate.weight, std=0.3)
    tokens = {role: network.mails[role](token) for role, (token, _) in mailboxes.items()}
    masks = {role: mask for role, (_, mask) in mailboxes.items()}
    batch = len(masks["payer"])
    tokens["aggregates"] = torch.randn(batch, 4, network.settings.width)
    masks["aggregates"] = torch.ones(batch, 4, dtype=torch.bool)
    assert not all(bool(mask.any(1).all()) for mask in masks.values())
    present_BM = torch.stack([masks[name].any(1) for name in network.fuser.names], 1)
    leaves = {name: token.detach().requires_grad_() for name, token in tokens.items()}
    fast = network.fuser(leaves, masks, present_BM)
    slow = MailboxConv(network.fuser)(leaves, masks)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-4)
    direction = torch.randn_like(fast)
    for name, leaf in leaves.items():
        (one,) = torch.autograd.grad((fast * direction).sum(), leaf, retain_graph=True)
        (other,) = torch.autograd.grad((slow * direction).sum(), leaf, retain_graph=True)
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4, msg=name)


def test_every_role_and_field_reaches_the_score(mailboxes: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Attention was dead in a published implementation: a change of a neighbour's field must change the logit."""
    torch.manual_seed(1)
    network = TemporalGraphNetwork(NetworkSettings(), Prior(0.0, 0.0, 0.0)).eval()
    torch.nn.init.normal_(network.head[-1].weight)  # trained from the prior on: zero at the start
    tokens = {role: token.clone().requires_grad_() for role, (token, _) in mailboxes.items()}
    masks = {role: mask for role, (_, mask) in mailboxes.items()}
    x = torch.randn(len(masks["payer"]), len(network.mean))
    network(x, tokens, masks).sum().backward()
    for role in ROLES:
        gradient = tokens[role].grad
        assert gradient is not None
        assert bool((gradient[masks[role]].abs().sum(0) > 0).all()), role
        assert gradient.shape[-1] == len(TOKEN)
        assert float(gradient[~masks[role]].abs().max()) == 0.0
