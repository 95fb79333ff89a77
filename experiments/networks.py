"""The paper's convolutional networks (Appendix F), from the authors' files, and a smaller one.

All have inputs [B, channels, 32, 32], ELU, and convolutions and pooling without padding.
"""

from torch import nn

from hesscale_layers import HesScale


def two_conv(channels, classes):
    """Return 2C2D, smaller than DeepOBS's: two convolutions and two linear layers, 56,970 parameters for MNIST."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 5), nn.ELU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(16, 32, 3), nn.ELU(), nn.MaxPool2d(3, 2), nn.Flatten(),
        nn.Linear(800, 64), nn.ELU(), nn.Linear(64, classes),
    )  # fmt: skip


def three_conv(channels, classes):
    """Return the authors' 3C3D: three convolutions and three linear layers, 394,052 parameters for CIFAR-100."""
    return nn.Sequential(
        nn.Conv2d(channels, 64, 5), nn.ELU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 96, 3), nn.ELU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(96, 128, 3), nn.ELU(), nn.MaxPool2d(3, 2), nn.Flatten(),
        nn.Linear(128, 512), nn.ELU(), nn.Linear(512, 256), nn.ELU(), nn.Linear(256, classes),
    )  # fmt: skip


def all_conv(channels, classes):
    """Return the authors' All-CNN-C: nine convolutions, 1,387,108 parameters for CIFAR-100."""
    shapes = (channels, 96, 3, 1), (96, 96, 3, 1), (96, 96, 3, 2), (96, 192, 3, 1), (192, 192, 3, 1), (192, 192, 3, 2)
    shapes += (192, 192, 3, 1), (192, 192, 1, 1), (192, classes, 1, 1)
    layers = []
    for place, (inputs, outputs, kernel, stride) in enumerate(shapes):
        layers += [nn.Dropout([0.2, 0.5, 0.5][place // 3])] * (place % 3 == 0)
        layers += [nn.Conv2d(inputs, outputs, kernel, stride), nn.ELU()]
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten())


NETWORKS = {"2c2d": two_conv, "3c3d": three_conv, "all-cnn-c": all_conv}


def make_network(name, channels, classes):
    """Return a HesScale network with the authors' initial weights, Xavier's, normal for convolutions, and biases."""
    model = NETWORKS[name](channels, classes)
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            initialize = nn.init.xavier_normal_ if isinstance(layer, nn.Conv2d) else nn.init.xavier_uniform_
            initialize(layer.weight)
            nn.init.constant_(layer.bias, 0.1 if name == "all-cnn-c" else 0.0)
    return HesScale(model)
