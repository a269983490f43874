"""The HTTP API: see docs/api.md."""

from config.schema import Role
from engine.api.accounts import Account, Accounts, HashedAccounts, Identity
from engine.api.app import create_app
from engine.api.server import serve
from engine.api.settings import ApiSettings, Rate
from engine.api.sip import SipGateway, SipPeer
from engine.api.trace import served_locally

__all__ = [
    "Account",
    "Accounts",
    "ApiSettings",
    "HashedAccounts",
    "Identity",
    "Rate",
    "Role",
    "SipGateway",
    "SipPeer",
    "create_app",
    "serve",
    "served_locally",
]
