"""A lesson between two machines, end to end: what `edgecompress teacher serve` and `edgecompress
student run` do, and what they write.
"""

from edgecompress.lesson.attend import Attendance, attend_lesson
from edgecompress.lesson.networks import LessonNetwork, network
from edgecompress.lesson.serve import Service, serve_lesson
from edgecompress.lesson.settings import Cutting, Learning, Lesson

__all__ = [
    "Attendance",
    "Cutting",
    "Learning",
    "Lesson",
    "LessonNetwork",
    "Service",
    "attend_lesson",
    "network",
    "serve_lesson",
]
