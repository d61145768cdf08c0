"""The QA web application."""
