"""Class paths that moved. A signature hashes the first spelling; a configuration may use either."""

FIRST_SPELLING = {
    "capsule_sweeps.networks.backbones.ResNet": "capsule_sweeps.networks.backbones.ResNet",
    "capsule_sweeps.networks.backbones.Simple": "capsule_sweeps.networks.backbones.Simple",
    "capsule_sweeps.networks.baselines.CNN": "capsule_sweeps.networks.baselines.CNN",
    "capsule_sweeps.networks.baselines.ResNet18": "capsule_sweeps.networks.baselines.ResNet18",
    "capsule_sweeps.networks.capsnet.CapsNet": "capsule_sweeps.networks.capsnet.CapsNet",
    "capsule_sweeps.routing.attention.Attention": "capsule_sweeps.routing.attention.Attention",
    "capsule_sweeps.routing.dynamic.Dynamic": "capsule_sweeps.routing.dynamic.Dynamic",
    "capsule_sweeps.routing.em.EM": "capsule_sweeps.routing.em.EM",
    "capsule_sweeps.routing.inverted_attention.InvertedAttention": "capsule_sweeps.routing.inverted_attention.InvertedAttention",
    "capsule_sweeps.routing.self_routing.SelfRouting": "capsule_sweeps.routing.self_routing.SelfRouting",
    "capsule_sweeps.routing.uniform.Uniform": "capsule_sweeps.routing.uniform.Uniform",
}
PRESENT_SPELLING = {first: present for present, first in FIRST_SPELLING.items()}
