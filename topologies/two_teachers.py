"""Two teachers, each with a student of its own: sudo edgecompress emulate
topologies/two_teachers.py.
"""

from mininet.topo import Topo


class TwoTeachers(Topo):
    """teacher1 and teacher2 on one switch, two students on another; the link between them is
    shared.
    """

    def build(self) -> None:
        """Four hosts, two switches."""
        self.addSwitch("s1")
        self.addSwitch("s2")
        self.addLink("s1", "s2", bw=20, delay="5ms")
        for number in (1, 2):
            self.addHost(f"teacher{number}", role="teacher", model="resnet20")
            self.addLink(f"teacher{number}", "s1", bw=100)
            self.addHost(f"student{number}", role="student", model="lenet5")
            self.addLink("s2", f"student{number}", bw=100)


topos = {"two_teachers": TwoTeachers}
