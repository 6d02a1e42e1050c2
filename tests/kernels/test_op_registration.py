"""The ops as torch.library sees them: opcheck, and the public calls under torch.compile."""

from __future__ import annotations

import kernel_cases as cases
import mlp_cases
import newton_cases
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import grasp_kernels
from grasp_kernels import action_step_, gaussian_noise, lifted_loss, lifted_step_

OPS = torch.ops.grasp_kernels
PLANS, STEPS, FEATURES = 2, 3, 5
OPCHECK_DTYPES = [torch.float64, torch.float32]


@pytest.fixture(params=["reference", "native"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As everywhere, but for the MLP ops and the Newton step too."""
    mlp_cases.use_backend(monkeypatch, request.param)
    return request.param


def samples(name: str, dtype: torch.dtype) -> list[tuple]:
    """Arguments of an op: everything given, and every optional left out."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    trajectory, prediction, goal = cases.inputs(PLANS, STEPS, FEATURES, dtype)
    w, v = torch.rand(FEATURES, dtype=compute), torch.rand(STEPS, dtype=compute)
    ids = torch.tensor([3, 2**62])
    rows = torch.rand(PLANS, STEPS, dtype=compute)
    states = (prediction, trajectory, goal)
    if name.startswith("mlp_"):
        return mlp_samples(name, dtype)
    if name == "lifted_newton_step_":
        boxed = newton_cases.arguments(PLANS, 7, FEATURES, 2, hold=3, dtype=dtype)
        return [
            newton_cases.positional(boxed, goal_weight=w),
            newton_cases.positional(boxed, low=None, high=None, hold=1, solves=1),
            newton_cases.positional(newton_cases.arguments(0, STEPS, FEATURES, 2, dtype=dtype)),
        ]
    if name == "lifted_loss":
        return [(*states, None, None), (*states, w, v), (*states, w, None)]
    if name == "lifted_loss_backward":
        return [(rows, rows + 1, *states, None, None), (rows, rows + 1, *states, w, v)]
    if name == "lifted_step_":
        coefficients = torch.tensor([[0.1, 0.2, 0.3]], dtype=compute).expand(PLANS, 3)
        head = (trajectory, prediction, goal, coefficients, ids)
        return [
            (*head, None, None, None, 0.0, -5, 1, "white", 8, 0, STEPS, False),
            (*head, w, v, trajectory + 1, 0.5, 2**62, 9, "bridge", 4, 2, 9, True),
            (*head, None, v, None, 0.0, 0, 0, "none", 1, 0, STEPS, True),
        ]
    if name == "action_step_":
        actions = torch.randn(PLANS, STEPS, 3, dtype=dtype)
        low, high = torch.full((3,), -0.5, dtype=dtype), torch.full((3,), 0.5, dtype=dtype)
        first, second = torch.rand(2, PLANS, STEPS, 3, dtype=compute).unbind(0)
        lr = torch.tensor([0.1], dtype=compute).expand(PLANS)
        betas = (0.9, 0.999, 1e-8, 7)
        return [
            (actions, actions + 1, None, None, lr, None, None, *betas),
            (actions, actions + 1, first.clone(), second.clone(), lr, low, high, *betas),
            (actions, actions + 1, first.clone(), second.clone(), lr, None, high, *betas),
        ]
    if name == "gaussian_noise":
        return [
            (ids, STEPS, FEATURES, -1, 2, "white", 8, 0, STEPS, dtype),
            (ids, STEPS, FEATURES, 2**62, 2, "bridge", 3, 4, 20, dtype),
            (ids[:0], STEPS, FEATURES, 0, 0, "none", 8, 0, STEPS, dtype),
        ]
    return [(ids, STEPS, FEATURES, -1, 2, 0), (ids, STEPS, 4, 7, 2, 1000)]


def mlp_samples(name: str, dtype: torch.dtype) -> list[tuple]:
    dynamics = mlp_cases.model(FEATURES, 2, (8, 3), norm=True, residual=True, dtype=dtype)
    packed = dynamics.packed()
    trajectory, actions, goal = mlp_cases.plan_tensors(PLANS, STEPS, FEATURES, 2, dtype)
    start, sound = trajectory[:, 0].clone(), torch.ones(PLANS, dtype=torch.bool)
    low, high = torch.full((2,), -0.5, dtype=dtype), torch.full((2,), 0.5, dtype=dtype)
    w = torch.rand(FEATURES, dtype=dtype)
    if name == "mlp_rollout":
        narrow = dynamics.to(torch.bfloat16).packed()
        arguments = [(start, actions, *packed), (start, actions[:, :0], *packed)]
        return arguments if dtype == torch.float64 else [*arguments, (start, actions, *narrow)]
    if name == "mlp_rollout_backward":
        one = trajectory[:, :1]  # T = 0
        return [
            (trajectory + 1, trajectory, actions, *packed),
            (one.contiguous(), one.clone(), actions[:, :0], *packed),
            (one + 1, one, actions[:, :0], *packed),
        ]
    if name == "mlp_jacobians":
        rows = (start, actions[:, 0])
        narrow = dynamics.to(torch.bfloat16).packed()
        arguments = [(*rows, *packed), (start[:0], actions[:0, 0], *packed)]
        return arguments if dtype == torch.float64 else [*arguments, (*rows, *narrow)]
    if name == "mlp_lifted_plan_":
        moments = torch.rand(2, *actions.shape, dtype=dtype).unbind(0)
        head = (trajectory, actions, *(moment.clone() for moment in moments), sound)
        descent = (trajectory, actions, None, None, sound)
        schedule, rates = mlp_cases.schedule(2, dtype), torch.rand(PLANS, 3, dtype=dtype)
        problem = (goal, schedule, rates, mlp_cases.ids(PLANS))
        idle = (goal, schedule[:0], *problem[2:])
        adam = (0.9, 0.999, 1e-8, 7)
        return [
            (*head, *problem, w, low, high, *packed, -5, 1, "white", 8, False, *adam),
            (*descent, *problem, None, None, high, *packed, 2**62, 9, "bridge", 4, True, *adam),
            (*descent, *idle, None, None, None, *packed, 0, 0, "none", 1, False, *adam),
        ]
    best = mlp_cases.bests(PLANS, STEPS, FEATURES, 2, dtype)
    lr = torch.rand(PLANS, dtype=dtype)
    head = (trajectory, actions, *best, sound, start, goal, lr)
    adam = (0.9, 0.999, 1e-8)
    return [
        (*head, w, low, high, *packed, 2, True, *adam, 0.1, 0.5, False),
        (*head, None, low, None, *packed, 1, False, *adam, -torch.inf, 1.0, True),
        (*head, None, None, None, *packed, 0, True, *adam, -torch.inf, 0.0, False),
    ]


@pytest.mark.parametrize("name", sorted(grasp_kernels.SCHEMAS))
@pytest.mark.parametrize("storage", OPCHECK_DTYPES, ids=str)
def test_opcheck(backend, name, storage) -> None:
    """Schema (what is mutated, what may alias), fake kernels, autograd keys, AOT dispatch."""
    for arguments in samples(name, storage):
        torch.library.opcheck(getattr(OPS, name).default, arguments)


@pytest.mark.parametrize("name", ["lifted_loss", "lifted_step_"])
def test_opcheck_of_strided_trajectories(backend, name) -> None:
    """A slice in plans and time, as the planner's blocks are."""
    for arguments in samples(name, torch.float32):
        place = 0 if name == "lifted_step_" else 1
        block = torch.randn(PLANS + 2, STEPS + 4, FEATURES)
        changed = list(arguments)
        changed[place] = block[1:-1, 2:-1]
        torch.library.opcheck(getattr(OPS, name).default, tuple(changed))


def test_every_schema_is_registered_and_no_more() -> None:
    registered = {
        schema.name.split("::")[1]
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("grasp_kernels::")
    }
    assert registered == set(grasp_kernels.SCHEMAS)


def step_all(x, p, g, a, da, m, v, lr):
    """Every public call that writes, in one graph."""
    xi = gaussian_noise(2, 4, 5, seed=2**64 - 1, iteration=2, noise="bridge")
    loss, cotangent = lifted_step_(
        x, p, g, state_lr=lr, goal_weight=0.1, noise_scale=0.2, seed=3, iteration=1
    )
    state = {"step": 1, "first_moment": m, "second_moment": v}
    action_step_(a, da, state, lr=lr[0], low=-0.3, high=1 / 3)
    action_step_(a, da, None, lr=0.1, optimizer="sgd")
    return loss.total, cotangent, xi


def writing_inputs() -> list[torch.Tensor]:
    torch.manual_seed(3)
    x, p, g = cases.inputs(2, 3, 5, torch.float32)
    a, da = torch.randn(2, 2, 3, 4).unbind(0)
    m, v = torch.rand(2, 2, 3, 4).unbind(0)
    return [x, p, g, *(t.clone() for t in (a, da, m, v)), torch.tensor([0.1, 0.2])]


def noise_and_actions(x, p, g, a, da, m, v, lr):
    """What needs no C++ of inductor's own, whose compiler takes half a minute to warm up."""
    action_step_(a, da, None, lr=0.1, low=-0.5, optimizer="sgd")
    return (gaussian_noise(2, 4, 5, seed=1, iteration=2),)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
@pytest.mark.parametrize(
    ("call", "compiler"), [(step_all, "aot_eager"), (noise_and_actions, "inductor")]
)
def test_compiled_calls_that_write(call, compiler) -> None:
    torch._dynamo.reset()
    plain, compiled = writing_inputs(), writing_inputs()
    expected = call(*plain)
    found = torch.compile(call, fullgraph=True, backend=compiler)(*compiled)
    for one, other in zip([*found, *compiled], [*expected, *plain], strict=True):
        assert cases.same_bits(one, other)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_compiled_loss_with_its_backward() -> None:
    torch._dynamo.reset()

    def gradient(action, x, g, weight):
        prediction = grasp_kernels.scale_state_gradient(x[:, :-1]) + action.tanh()
        loss = lifted_loss(prediction, x, g, goal_weight=0.3, feature_weight=weight)
        return loss.total.sum(), loss.goal

    x, _, g = cases.inputs(2, 3, 5, torch.float32)
    weight = torch.rand(5)
    results = []
    for call in (gradient, torch.compile(gradient, fullgraph=True, backend="aot_eager")):
        action = torch.full((2, 3, 5), 0.3, requires_grad=True)
        total, goal = call(action, x, g, weight)
        total.backward()
        results.append((total.detach(), goal.detach(), action.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
        assert torch.isfinite(one).all()
        assert one.any()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_compiled_once_for_many_iterations_and_seeds() -> None:
    """A changing iteration number must not compile a new graph every time."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter, dynamic=True)
    def draw(iteration: int) -> torch.Tensor:
        return gaussian_noise(2, 3, 4, seed=1, iteration=iteration)

    for iteration in range(2, 7):
        expected = gaussian_noise(2, 3, 4, seed=1, iteration=iteration)
        assert cases.same_bits(draw(iteration), expected)
    assert counter.frame_count <= 2  # with 8 torch gives up, with fullgraph=True by an error


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_compiled_once_for_a_whole_schedule() -> None:
    """Noise, goal weight and step size of a schedule are new numbers in every iteration."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def call(x, p, g, iteration: int, *numbers: float):
        names = ("state_lr", "goal_weight", "noise_scale")
        schedule = dict(zip(names, numbers, strict=True))
        loss, cotangent = lifted_step_(x, p, g, seed=3, iteration=iteration, **schedule)
        return loss.total, cotangent

    compiled = torch.compile(call, fullgraph=True, backend=counter)
    x, p, g = cases.inputs(2, 3, 5, torch.float32)
    other = x.clone()
    for k in range(1, 13):
        numbers = (0.25 / k, 0.01 * k, 0.3 / (k + 1))
        expected, found = call(x, p, g, k, *numbers), compiled(other, p, g, k, *numbers)
        for one, two in zip([*found, other], [*expected, x], strict=True):
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)
        x.copy_(other)
    assert counter.frame_count <= 3  # with 8 torch gives up, with fullgraph=True by an error


def test_a_functional_gradient() -> None:
    trajectory, prediction, goal = cases.inputs(2, 3, 5, torch.float64)

    def total(p, x):
        return lifted_loss(p, x, goal, goal_weight=0.3).total.sum()

    found = torch.func.grad(total, argnums=(0, 1))(prediction, trajectory)
    leaves = [t.requires_grad_() for t in (prediction, trajectory)]
    expected = torch.autograd.grad(total(*leaves), leaves)
    assert all(cases.same_bits(a, b) for a, b in zip(found, expected, strict=True))


def test_a_compiled_loop_of_adam_steps() -> None:
    """The step count changes at every call and must stay a variable of the graph."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def compiled(actions: torch.Tensor, gradient: torch.Tensor, state: dict[str, object]) -> None:
        action_step_(actions, gradient, state, lr=0.1, low=-1.0, high=1.0)

    actions, state, expected, expected_state = torch.zeros(2, 3, 2), {}, torch.zeros(2, 3, 2), {}
    for _ in range(12):
        gradient = torch.randn(2, 3, 2)
        compiled(actions, gradient, state)
        action_step_(expected, gradient, expected_state, lr=0.1, low=-1.0, high=1.0)
        assert cases.same_bits(actions, expected)
    assert state["step"] == 12
    assert counter.frame_count <= 3
