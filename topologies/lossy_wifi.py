"""A student on a lossy wireless link: sudo edgecompress emulate topologies/lossy_wifi.py."""

from mininet.topo import Topo


class LossyWifi(Topo):
    """teacher - access point - student: 20 Mbit/s, 4 ms with 2 ms of jitter, 2 % of the frames lost
    in each direction.
    """

    def build(self) -> None:
        """Two hosts and an access point."""
        self.addHost("teacher", role="teacher", model="resnet20")
        self.addHost("student", role="student", model="lenet5")
        self.addSwitch("ap1")
        self.addLink("teacher", "ap1", bw=100)
        self.addLink("ap1", "student", bw=20, delay="4ms", jitter="2ms", loss=2)


topos = {"lossy_wifi": LossyWifi}
