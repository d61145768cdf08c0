"""What is read of a study, how, and why: the rules of the site, and the choice of the series."""

from .routing import Choice, NoFit, Route, Rule, route, summarize

__all__ = ["Choice", "NoFit", "Route", "Rule", "route", "summarize"]
