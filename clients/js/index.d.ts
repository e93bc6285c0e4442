/** Of a user on one platform: `push_online` is reachable by push only. */
export type Status = "online" | "push_online" | "offline";

export type State = "closed" | "connecting" | "online" | "waiting";

export type ErrorCode =
  | "bad_option"
  | "no_websocket"
  | "no_token"
  | "cannot_connect"
  | "disconnected"
  | "no_answer"
  | "bad_frame"
  | "bad_parameter"
  | "unauthorized"
  | "unknown_platform"
  | "too_many_of_user"
  | "too_many_of_address"
  | "too_fast"
  | "not_ready"
  | "log_unavailable"
  // A later gateway may have more.
  | (string & {});

/** What a request fails with, and what `error` events carry. */
export class RollcallError extends Error {
  constructor(code: ErrorCode, message: string);
  readonly code: ErrorCode;
}

export interface TokenRequest {
  device: string;
  platform: string;
  /** Why the token before was refused, or null. */
  refused: string | null;
}

export interface Options {
  /** Where the gateway is, ws:// or wss://. */
  url: string;
  /** One of the policy's platforms, 1 to 64 bytes. */
  platform: string;
  /** An id of this installation or tab, 1 to 128 bytes. Without one a page makes its own, in sessionStorage. */
  device?: string;
  /** A JWT, or a function that gives one for each connection. */
  token?: string | ((request: TokenRequest) => string | Promise<string>);
  /** For a gateway that asks for no token. */
  user?: string;
  /** Name and version of the app. */
  app?: string;
  /** The class to connect with, if not the global one. */
  WebSocket?: new (url: string, protocols: string[]) => any;
  /** false: the device id is known to be held by nobody else, and not checked. */
  claim?: boolean;
}

export interface Hello {
  user: string;
  gateway: string;
  epoch: number;
  conn: number;
  heartbeat_ms: number;
  timeout_ms: number;
  ping_ms?: number;
}

/** How a user stands. */
export interface Standing {
  user: string;
  status: Status;
  version: number;
  since: number;
  custom_status: string | null;
  devices: { platform: string; status: Status }[];
}

export interface Change {
  user: string;
  status: Status;
  version: number;
  at: number;
  cause: string;
  custom_status: string | null;
  devices: { platform: string; before: Status; after: Status }[];
}

export interface Events {
  state: State;
  online: Hello;
  offline: { code: number; reason: string; comesBack: boolean };
  change: Change;
  standing: Standing;
  /** A user that this client is not subscribed to any more, because it subscribed to too many. */
  evicted: string;
  kicked: { reason: string; reconnect: boolean };
  /** The new device id: another tab holds the one that was given. */
  device: string;
  error: RollcallError;
}

export class Rollcall {
  /** Throws a RollcallError `bad_option` if an option is missing or too long. */
  constructor(options: Options);
  readonly state: State;
  /** The device id in use. */
  readonly device: string;
  /** The last `hello`. */
  readonly hello: Hello | null;
  /** Gives a function that takes the listener off. */
  on<E extends keyof Events>(event: E, listener: (value: Events[E]) => void): () => void;
  /** A person logs in: connects, and may displace the user's other devices. Throws `no_websocket`. */
  login(): void;
  /** Comes back without displacing anybody. Throws `no_websocket`. */
  resume(): void;
  /** Logs out; done once that is safe. */
  logout(): Promise<void>;
  /** Closes the connection and stays away. */
  close(): void;
  background(): Promise<unknown>;
  foreground(): Promise<unknown>;
  /** null clears it. */
  setCustomStatus(text: string | null): Promise<unknown>;
  /** Up to 200 users. */
  query(users: string[]): Promise<{ users: Standing[]; unknown: string[] }>;
  /** Up to 200 users. Renewed by itself after each reconnect. */
  subscribe(users: string[]): Promise<{ users: Standing[]; unknown: string[]; evicted: string[] }>;
  unsubscribe(users: string[]): Promise<void>;
}
