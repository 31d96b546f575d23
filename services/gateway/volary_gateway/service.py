"""Composition of gateway."""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import volary_contract
from envoy.service.accesslog.v3 import als_pb2_grpc
from envoy.service.discovery.v3 import ads_pb2_grpc
from inference import grpc_service_pb2_grpc as v2_grpc
from volary.gateway.v1 import (
    edge_service_pb2_grpc,
    evidence_service_pb2_grpc,
    identity_service_pb2_grpc,
    replica_service_pb2_grpc,
    traffic_service_pb2_grpc,
)
from volary.inference.v1 import prediction_service_pb2_grpc
from volary_kit.database import Database
from volary_kit.identity import KEY_ISSUER, SigningKey
from volary_kit.resources import peers_of
from volary_kit.revocations import write_revocations
from volary_kit.server import AioServer
from volary_kit.service import Resources, Service, Servicer

from volary_gateway.admin import EnvoyAdmin
from volary_gateway.controller import Controller, ListRevoked, list_nowhere
from volary_gateway.credential import EnvoyCredential
from volary_gateway.handlers import access_logs, discovery, fallback
from volary_gateway.handlers.edge import EdgeHandler
from volary_gateway.handlers.evidence import EvidenceHandler
from volary_gateway.handlers.fallback import (
    FallbackPredictionHandler,
    FallbackV2Handler,
    LastPredictions,
)
from volary_gateway.handlers.identity import IdentityHandler
from volary_gateway.handlers.replicas import ReplicaHandler
from volary_gateway.handlers.traffic import TrafficHandler
from volary_gateway.leadership import leading
from volary_gateway.plane import Plane
from volary_gateway.recorder import Recorder
from volary_gateway.settings import GatewaySettings
from volary_gateway.store.kept import KeptPredictions
from volary_gateway.xds.edge import Edge, edge_methods


@asynccontextmanager
async def build(kit: Resources[GatewaySettings]) -> AsyncIterator[Service]:
    """Build gateway once it may lead: of two with one database the second one waits here."""
    database, url = kit.require_database(), kit.settings.database_url or ""
    async with leading(url) as leadership, _built(kit, database) as service:
        yield replace(service, background=[*service.background, leadership.watch_always])


@asynccontextmanager
async def _built(kit: Resources[GatewaySettings], database: Database) -> AsyncIterator[Service]:
    """Serve the stored state before the first call is taken."""
    settings, clock = kit.settings, kit.clock
    plane, admin = Plane(), EnvoyAdmin(settings.envoy_admin, clock)
    listing = _revocation_list(settings)
    controller = Controller(database, plane, edge_of(settings), admin, clock, listing)
    recorder = Recorder(database, admin, clock, live=lambda: controller.live, rest=controller.rest)
    controller.on_unload(lambda version: recorder.forget(version.cluster))
    await controller.load()
    await recorder.load()
    background: list[Callable[[], Awaitable[None]]] = [
        controller.watch_leases,
        recorder.flush_always,
        recorder.reconcile_always,
    ]
    if (credential := _envoy_credential(kit)) is not None:
        credential.write()
        background.append(credential.renew_always)
    yield Service(
        servicers=[
            Servicer(
                traffic_service_pb2_grpc.add_TrafficServiceServicer_to_server,
                TrafficHandler(controller),
                "volary.gateway.v1.TrafficService",
            ),
            Servicer(
                replica_service_pb2_grpc.add_ReplicaServiceServicer_to_server,
                ReplicaHandler(controller),
                "volary.gateway.v1.ReplicaService",
            ),
            Servicer(
                evidence_service_pb2_grpc.add_EvidenceServiceServicer_to_server,
                EvidenceHandler(recorder, controller, clock),
                "volary.gateway.v1.EvidenceService",
            ),
            Servicer(
                identity_service_pb2_grpc.add_IdentityServiceServicer_to_server,
                IdentityHandler(database, _issuing_key(settings), controller, clock),
                "volary.gateway.v1.IdentityService",
            ),
            Servicer(
                ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server,
                discovery.DiscoveryHandler(plane),
                discovery.SERVICE,
            ),
            Servicer(
                als_pb2_grpc.add_AccessLogServiceServicer_to_server,
                access_logs.AccessLogHandler(recorder, controller.hostless),
                access_logs.SERVICE,
            ),
            Servicer(
                edge_service_pb2_grpc.add_EdgeServiceServicer_to_server,
                EdgeHandler(
                    controller,
                    clock,
                    serves_fallbacks=bool(settings.fallback_port),
                    keeps_predictions=kit.redis is not None,
                ),
                "volary.gateway.v1.EdgeService",
            ),
        ],
        listeners=[_fallback_server(kit, controller)] if settings.fallback_port else [],
        readiness=[database.ping],
        background=background,
    )
    await recorder.flush()


def _fallback_server(kit: Resources[GatewaySettings], controller: Controller) -> AioServer:
    """Return the listener that answers for models without a living replica."""
    kept = None if kit.redis is None else KeptPredictions(kit.redis, kit.clock)
    last = LastPredictions(kept, controller.serving)
    servicers = [
        Servicer(
            v2_grpc.add_GRPCInferenceServiceServicer_to_server,
            FallbackV2Handler(controller.fallbacks, last),
            fallback.V2_SERVICE,
        ),
        Servicer(
            prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server,
            FallbackPredictionHandler(controller.fallbacks, last),
            fallback.PREDICTION_SERVICE,
        ),
    ]
    return kit.aio_server(servicers, port=kit.settings.fallback_port)


def edge_of(settings: GatewaySettings) -> Edge:
    """Return what the edge is made of, from the settings alone."""
    services = {peer: address for peer, address in peers_of(settings).items() if address}
    own = settings.advertised_address or f"{settings.host}:{settings.port}"
    services["gateway"] = own
    rest = services.pop("rest", "")  # speaks no gRPC: it turns into it
    return Edge(
        listen=settings.envoy_listen,
        jwks=_edge_jwks(settings),
        descriptor_set=volary_contract.descriptor_set(),
        methods=edge_methods(),
        services=services,
        otlp=_host_port(settings.otlp_endpoint),
        rest=rest,
        fallback=f"{own.rpartition(':')[0]}:{settings.fallback_port}"
        if settings.fallback_port
        else "",
    )


def _edge_jwks(settings: GatewaySettings) -> str:
    """Return the keys that sign API keys: a service token is never good at the edge."""
    if settings.jwks_file is None:
        return '{"keys": []}'
    keys = json.loads(settings.jwks_file.read_text())["keys"]
    return json.dumps({"keys": [key for key in keys if key.get("iss") == KEY_ISSUER]})


def _revocation_list(settings: GatewaySettings) -> ListRevoked:
    path = settings.revocations_file
    return list_nowhere if path is None else functools.partial(write_revocations, path)


def _issuing_key(settings: GatewaySettings) -> SigningKey | None:
    if settings.issuing_key_file is None:
        return None
    return SigningKey.read(settings.issuing_key_file, kid=settings.issuing_key_id)


def _envoy_credential(kit: Resources[GatewaySettings]) -> EnvoyCredential | None:
    settings = kit.settings
    if settings.envoy_credential_file is None or settings.service_key_file is None:
        return None
    key = SigningKey.read(settings.service_key_file, kid=kit.service)
    return EnvoyCredential(settings.envoy_credential_file, key, kit.clock)


def _host_port(endpoint: str | None) -> str:
    """Return host:port of an OTLP endpoint that may be a URL."""
    return (endpoint or "").rpartition("://")[2].rstrip("/")
