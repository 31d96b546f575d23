"""Settings: read once, complete complaints, no secret in print."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from volary_kit.settings import ServiceSettings, SettingsError


class ShopSettings(ServiceSettings, service="shop"):
    registry_address: str | None = None
    shelves: int = 3


class BankSettings(ServiceSettings, service="bank"):
    vaults: int = 1


def test_each_service_reads_its_own_prefix(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VOLARY_SHOP_PORT", "7001")
    monkeypatch.setenv("VOLARY_SHOP_SHELVES", "9")
    monkeypatch.setenv("VOLARY_BANK_VAULTS", "2")
    shop, bank = ShopSettings.read(), BankSettings.read()
    assert (shop.port, shop.shelves, bank.port, bank.vaults) == (7001, 9, 0, 2)
    assert shop.registry_address is None


def test_every_unknown_and_broken_key_is_named_and_no_value(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VOLARY_SHOP_PORTS", "1")
    monkeypatch.setenv("VOLARY_SHOP_SHELVES", "hunter2")
    monkeypatch.setenv("VOLARY_SHOP_METRICS_PORT", "70000")
    with pytest.raises(SettingsError) as caught:
        ShopSettings.read()
    text = str(caught.value)
    for key in ("VOLARY_SHOP_PORTS", "VOLARY_SHOP_SHELVES", "VOLARY_SHOP_METRICS_PORT"):
        assert key in text
    assert "hunter2" not in text


def test_passwords_are_masked_in_print():
    url = "postgresql://volary:hunter2@127.0.0.1:5432/x"
    settings = ShopSettings.read(database_url=url, redis_url="redis://:hunter2@127.0.0.1/0")
    assert settings.database_url == url
    for shown in (repr(settings), str(settings), str(settings.masked())):
        assert "hunter2" not in shown
        assert "volary:***@127.0.0.1" in shown


def test_settings_are_frozen():
    settings = ShopSettings.read()
    with pytest.raises(ValidationError):
        settings.port = 1
