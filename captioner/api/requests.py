"""/api/requests/: the captions requested in one call, and webhook deliveries."""

from __future__ import annotations

from uuid import UUID

from drf_spectacular.utils import extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from captioner import services
from captioner.api.base import PROBLEM, RETRY_AFTER, RETRY_AFTER_HEADER, ApiViewSet
from captioner.api.serializers import CanceledSerializer, DeliverySerializer, RedeliverySerializer, RequestSerializer
from captioner.models import Caption, CaptionRequest, WebhookDelivery


class RequestViewSet(ApiViewSet):
    """The captions requested in one call."""

    queryset = CaptionRequest.objects.none()
    serializer_class = RequestSerializer

    def list(self, request: Request) -> Response:
        """Your requests."""
        return self.page(services.visible_requests(self.viewer))

    @extend_schema(parameters=[RETRY_AFTER_HEADER])
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """One request with all its captions."""
        made = services.get_request(self.viewer, pk)
        captions = list(made.captions.all())
        services.rescue_stale(captions)
        finished = all(caption.finished for caption in captions)
        return Response(self.get_serializer(made).data, headers={} if finished else RETRY_AFTER)

    @extend_schema(request=None, responses={200: CanceledSerializer}, operation_id="requests_cancel")
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: UUID) -> Response:
        """Cancel all queued and running captions of a request."""
        captions = Caption.objects.filter(request=services.get_request(self.viewer, pk))
        return Response({"canceled": services.cancel_captions(self.viewer, captions)})

    @extend_schema(responses=DeliverySerializer(many=True), filters=False)
    @action(detail=True, pagination_class=None)
    def deliveries(self, request: Request, pk: UUID) -> Response:
        """Deliveries of the request's webhook, with all attempts; one entry if the request has a webhook."""
        rows = WebhookDelivery.objects.filter(request=services.get_request(self.viewer, pk))
        return Response(DeliverySerializer(rows, many=True).data)

    @extend_schema(
        request=RedeliverySerializer,
        responses={202: DeliverySerializer, 409: PROBLEM},
        filters=False,
        operation_id="requests_redeliver",
    )
    @deliveries.mapping.post
    def redeliver(self, request: Request, pk: UUID) -> Response:
        """Send the request's webhook again, whether it was delivered or not, optionally with other secrets."""
        taken = RedeliverySerializer(data=request.data)
        taken.is_valid(raise_exception=True)
        return Response(
            DeliverySerializer(services.redeliver(self.viewer, pk, **taken.validated_data)).data, status=202
        )
