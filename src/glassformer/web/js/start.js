import { app } from "./main.js";

app();
