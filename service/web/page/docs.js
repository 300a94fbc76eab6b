/** The API's documentation by Swagger UI, which BentoML brings; the key goes with what it asks. */

import { key } from "./service.js";

/** @type {{SwaggerUIBundle: (options: object) => void}} */
const { SwaggerUIBundle } = /** @type {any} */ (window);

SwaggerUIBundle({
  url: "docs.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null, // asks nobody elsewhere
  requestInterceptor: (/** @type {{headers: Record<string, string>}} */ request) => {
    const known = key.get();
    if (known) request.headers["x-api-key"] = known;
    return request;
  },
});
